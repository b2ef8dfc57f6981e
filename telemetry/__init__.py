"""Tracing and logging for every process, and the wires that carry one trace over HTTP and gRPC.

The wires are our own because the instrumentation packages of opentelemetry-python-contrib
(0.66b2) continue a stranger's trace, send our trace context to the provider, do not report the status of an
aborted or cancelled gRPC call and name HTTP attributes the old way unless the environment says otherwise.
Each of ours takes the tracer provider as an argument and touches no global.
"""
