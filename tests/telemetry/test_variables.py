import subprocess
from pathlib import Path

import opentelemetry.environment_variables
import opentelemetry.sdk.environment_variables
import pytest

from telemetry.tracing import tracing
from telemetry.variables import drop_unusable

GARBAGE = ["a b", "-1", "1e999", "nan", "10s", "%zz%ff", "é", "\udcff", "9" * 5_000, "=", "://", "[" * 50]
NAMES = sorted(
    name
    for module in (opentelemetry.environment_variables, opentelemetry.sdk.environment_variables)
    for name in vars(module).values()
    if isinstance(name, str) and name.startswith("OTEL_")
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "256"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "9" * 30),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "0"),
        ("OTEL_BSP_SCHEDULE_DELAY", "1.5"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "-1"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-1"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1_0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "inf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "br"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/xml"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_METRICS_EXPORTER", "statsd"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "abc"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_PROPAGATORS", "b3"),
        ("OTEL_PROPAGATORS", "baggage"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%0Atoken"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t%C3%B6ken"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", 'a="b"'),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name"),
        ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
        ("OTEL_RESOURCE_ATTRIBUTES", "a=%ff"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:99999"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector/v1/traces"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/nowhere/ca.pem"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/etc/hostname"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/nowhere/key.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/nowhere/client.pem"),
        ("OTEL_EXPORTER_OTLP_INSECURE", "maybe"),
        ("OTEL_SDK_DISABLED", "yes please"),
        ("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "crystal_ball"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "tcp://10.0.0.1:9464"),
        ("OTEL_SERVICE_NAME", "\udcff"),
        ("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "gcp"),
        ("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", "OFTEN"),
        ("OTEL_PYTHON_METER_PROVIDER", "theirs"),
    ],
)
def test_unusable(name: str, value: str) -> None:
    """It is told once, by its name and not its value, and is gone."""
    environ = {name: value, "PATH": "/bin"}

    (remark,) = drop_unusable(environ)

    assert (name, {"PATH": "/bin"}) == (remark.variable, environ)
    assert remark.facts["expected"]
    assert value not in (remark.event, *remark.facts.values())


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_BSP_MAX_QUEUE_SIZE": "256", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "256"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:pass@collector.example:4318/path/"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://[::1]:4318/v1/traces"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20token,x-tenant=7"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Bearer token=="},
        {"OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"},
        {"OTEL_EXPORTER_OTLP_TIMEOUT": "0.5"},
        {"OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=production,a=%C3%A9"},
        {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"},
        {"OTEL_TRACES_SAMPLER_ARG": "1e-3"},
        {"OTEL_SPAN_EVENT_COUNT_LIMIT": "0"},
        {"OTEL_PROPAGATORS": "tracecontext,baggage"},
        {"OTEL_SDK_DISABLED": "true"},
        {"OTEL_SERVICE_NAME": "our gateway é"},
        {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process,os"},
    ],
    ids=str,
)
def test_usable(environ: dict[str, str]) -> None:
    """What the specification has is left as it is."""
    left = dict(environ)

    assert [] == drop_unusable(left)
    assert environ == left


@pytest.mark.parametrize("ratio", [{}, {"OTEL_TRACES_SAMPLER_ARG": "0,5"}])
def test_ratio_by_default(caplog: pytest.LogCaptureFixture, monkeypatch, ratio: dict[str, str]) -> None:
    """A sampler without its ratio has the default, and the SDK has nothing to add to what is told."""
    environ = {
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        **ratio,
    }
    told = [remark.variable for remark in drop_unusable(environ)]
    for name, text in environ.items():
        monkeypatch.setenv(name, text)
    with tracing("gateway", environ):
        pass

    assert ([*ratio], []) == (told, caplog.messages)


def test_together() -> None:
    """Two that exclude each other are both left at their defaults; what is empty is not set at all."""
    environ = {
        "OTEL_BSP_MAX_QUEUE_SIZE": "100",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "200",
        "OTEL_SPAN_LINK_COUNT_LIMIT": " ",
        "OTEL_TRACES_SAMPLER": " ALWAYS_OFF ",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "GRPC",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "deflate",
        "OTEL_EXPORTER_OTLP_HEADERS": "x~y=1",
    }

    told = [remark.variable for remark in drop_unusable(environ)]

    assert {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"} == environ
    assert [
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    ] == told


def test_certificates(tmp_path: Path) -> None:
    """A pair that fits is kept, one that does not goes, and nobody is asked for a password."""
    key, certificate, locked = (tmp_path / name for name in ("key.pem", "certificate.pem", "locked.pem"))
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=t", "-days", "1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-aes256", "-passout", "pass:x", "-in", key, "-out", locked],
        check=True,
        capture_output=True,
    )
    good = {
        "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate),
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(certificate),
        "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY": str(key),
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(key),
    }
    left, bad = dict(good), good | {"OTEL_EXPORTER_OTLP_CLIENT_KEY": str(locked)}

    assert [] == drop_unusable(left)
    assert good == left
    assert {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"} <= {
        remark.variable for remark in drop_unusable(bad)
    }


@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_nothing_breaks_the_start(monkeypatch, protocol: str) -> None:
    """Whatever a variable of the SDK says, the provider is made."""
    usual = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_TRACES_SAMPLER": "traceidratio",
    }
    assert 70 < len(NAMES)
    tried = []
    for name in NAMES:
        for value in GARBAGE:
            environ = usual | {name: value}
            drop_unusable(environ)
            # Most of it is dropped, and leaves what was there before.
            if environ in tried:
                continue
            tried.append(environ)
            with monkeypatch.context() as patched:
                for one, text in environ.items():
                    patched.setenv(one, text)
                with tracing("gateway", environ) as provider:
                    provider.get_tracer("t")
