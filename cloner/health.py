"""Asks the cloner on this machine whether it serves: `python -m cloner.health`, exit status 0 or 1.

For health checks of containers and service managers. It reads CLONER_HOST and CLONER_PORT as the cloner
does, asks the gRPC health service and takes 3 seconds at most. If it fails, a line on standard error says
why.
"""

import os
import sys
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from msgspec import Struct

import environment
from cloner.transport_security import health_target
from environment import Host, Port

__all__ = ["problem"]

ANSWER_SECONDS = 3.0


class Listening(Struct, frozen=True, kw_only=True):
    """Where the cloner listens, as its own settings have it."""

    cloner_host: Host = Host("127.0.0.1")
    cloner_port: Port = 50051


def problem(environ: Mapping[str, str]) -> str | None:
    """What an operator should know if the cloner does not answer in time that it serves; None if it does.

    Raises EnvironmentInvalid.
    """
    where = environment.read(Listening, environ)
    place = environment.address(where.cloner_host, where.cloner_port)
    target = health_target(where.cloner_host, where.cloner_port)
    # A proxy from the environment would look for the address on its own machine.
    with grpc.insecure_channel(target, options=(("grpc.enable_http_proxy", 0),)) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=ANSWER_SECONDS
            )
        except grpc.RpcError:
            return f"no cloner of this machine answers for {place}: are CLONER_HOST and CLONER_PORT its own?"
    if answer.status == health_pb2.HealthCheckResponse.SERVING:
        return None
    return f"the cloner at {place} does not serve: see its log"


def main() -> int:
    """The exit status."""
    try:
        fault = problem(os.environ)
    except environment.EnvironmentInvalid as invalid:
        fault = str(invalid)
    if fault is None:
        return 0
    environment.complain(f"cloner.health: {fault}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
