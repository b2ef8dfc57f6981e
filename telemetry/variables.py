"""Removes unusable `OTEL_*` variables from a process's environment, before the SDK reads them.

The SDK reads its variables from the environment by itself, in many places. If a value cannot be used, it
takes the default in some places, raises in others, and in some logs the value, which may be a secret. Here
the log gets the name alone, and the default applies.
"""

import importlib.metadata
import math
import re
import ssl
import urllib.parse
from collections.abc import Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from environment import Host, Remark, Target

__all__ = ["DEFAULT_QUEUE", "drop_unusable", "pairs"]

SIGNALS = ("", "TRACES_", "METRICS_")
OTLP = "OTEL_EXPORTER_OTLP_"

WHOLE = re.compile(r"[0-9]{1,9}")
DECIMAL = re.compile(r"[0-9]{1,9}(\.[0-9]{0,9})?")
# The name of a header, as HTTP has it; gRPC takes fewer characters.
HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
GRPC_HEADER = re.compile(r"(?!grpc-)[0-9a-z_.-]+(?<!-bin)")
# Spans wait in memory: nobody means more of them than this.
LONGEST_QUEUE = 1_000_000
A_DAY = 86_400

QUEUE, BATCH = "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
DEFAULT_QUEUE, DEFAULT_BATCH = 2_048, 512

Environ = MutableMapping[str, str]


class Rule(NamedTuple):
    """What a value must be: a test that may also raise ValueError or OSError, and words for the log."""

    fits: Callable[[str], bool]
    expected: str
    is_word: bool = False
    """Whether it may also be written in capitals."""


def drop_unusable(environ: Environ) -> list[Remark]:
    """Removes unusable values from `environ`, and returns for each what is expected.

    An empty variable counts as not set, and blanks around a value are ignored.
    """
    for name in [name for name in environ if name.startswith("OTEL_")]:
        text = environ.pop(name).strip()
        if text:
            environ[name] = text
    rules = _rules(environ)
    remarks = []
    for name in sorted(name for name in environ if name.startswith("OTEL_")):
        rule = rules.get(name) or (UNSUPPORTED if name.startswith("OTEL_PYTHON_") else ANY)
        if not _is_usable(environ[name], rule):
            del environ[name]
            remarks.append(_remark(name, rule.expected))
        elif rule.is_word:
            environ[name] = environ[name].lower()
    if environ.get("OTEL_TRACES_SAMPLER", "").endswith("traceidratio"):
        # The SDK's default, set here because otherwise the SDK logs a complaint about it.
        environ.setdefault("OTEL_TRACES_SAMPLER_ARG", "1.0")
    return [*remarks, *_contradictions(environ)]


def _remark(name: str, expected: str) -> Remark:
    return Remark("this cannot be used: the default is taken", name, facts={"expected": expected})


def _is_usable(text: str, rule: Rule) -> bool:
    try:
        text.encode()
        return rule.fits(text)
    except (OSError, ValueError):  # bytes that are not UTF-8 among the latter
        return False


def _contradictions(environ: Environ) -> list[Remark]:
    """Remarks on values that are usable by themselves but not together."""
    remarks = []
    if int(environ.get(BATCH, DEFAULT_BATCH)) > int(environ.get(QUEUE, DEFAULT_QUEUE)):
        for name, expected in (
            (QUEUE, f"at least {BATCH} ({DEFAULT_BATCH})"), (BATCH, f"at most {QUEUE} ({DEFAULT_QUEUE})"),
        ):  # fmt: skip
            if environ.pop(name, None) is not None:
                remarks.append(_remark(name, expected))
    for signal in SIGNALS:
        names = (f"{OTLP}{signal}CLIENT_CERTIFICATE", f"{OTLP}{signal}CLIENT_KEY")
        paths = [
            environ.get(name) or environ.get(f"{OTLP}{name.removeprefix(OTLP + signal)}") for name in names
        ]
        if not any(name in environ for name in names) or _is_pair(*paths):
            continue
        remarks += [
            _remark(name, "a certificate and its key, both in PEM and without a password")
            for name in names
            if environ.pop(name, None) is not None
        ]
    return remarks


def _is_pair(certificate: str | None, key: str | None) -> bool:
    if certificate is None:
        return False
    try:
        # Without a password function OpenSSL would ask on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError):
        return False
    return True


def _whole(least: int, most: int = LONGEST_QUEUE) -> Rule:
    return Rule(
        lambda text: WHOLE.fullmatch(text) is not None and least <= int(text) <= most,
        f"a whole number from {least} to {most}",
    )


def _one_of(*words: str) -> Rule:
    return Rule(lambda text: text.lower() in words, f"one of: {', '.join(words)}", is_word=True)


def _seconds(text: str) -> bool:
    return DECIMAL.fullmatch(text) is not None and 0 < float(text) <= A_DAY


def _ratio(text: str) -> bool:
    number = float(text)
    return math.isfinite(number) and 0 <= number <= 1


def pairs(text: str) -> list[tuple[str, str]]:
    """`name=value,name=value` with its percent signs decoded. Raises ValueError."""
    found = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        name, separator, value = item.partition("=")
        name, value = (urllib.parse.unquote(part.strip(), errors="strict") for part in (name, value))
        if not name or not separator:
            raise ValueError("not name=value")
        found.append((name, value))
    return found


def _headers(text: str, *, over_grpc: bool) -> bool:
    # A quotation mark or a backslash makes the SDK skip a pair, and log it.
    return not re.search(r'["\\;]', text) and all(
        (GRPC_HEADER.fullmatch(name.lower()) if over_grpc else HEADER.fullmatch(name))
        and re.fullmatch(r"[ -~]*", value)
        for name, value in pairs(text)
    )


def _endpoint(text: str, *, over_grpc: bool) -> bool:
    if not re.fullmatch(r"[!-~]+", text):
        return False
    url = urllib.parse.urlsplit(text)
    if url.scheme in {"http", "https"}:
        whole = url.port != 0 and bool(url.hostname and Host.read(url.hostname))
        return whole and not (over_grpc and "@" in url.netloc)
    return over_grpc and bool(Target.read(text))


def _authorities(text: str) -> bool:
    if not Path(text).is_file():
        return False
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=text)
    return True


def _listed(text: str) -> set[str]:
    return {part.strip() for part in text.split(",") if part.strip()}


def _detectors(text: str) -> bool:
    known = importlib.metadata.entry_points(group="opentelemetry_resource_detector").names | {"*"}
    return _listed(text) <= known


def _codes(text: str) -> bool:
    import grpc

    return _listed(text.upper()) <= set(grpc.StatusCode.__members__)


ANY = Rule(lambda _: True, "UTF-8")
UNSUPPORTED = Rule(lambda _: False, "nothing: Precall does not use this")
SWITCH = _one_of("true", "false")
COUNT = _whole(0, 999_999_999)
MILLISECONDS = _whole(1, A_DAY * 1_000)
PAIRS = "name=value,name=value, percent-encoded"
# Baggage, which the SDK's default names too, is never passed on.
PROPAGATORS = {"tracecontext"}, {"tracecontext", "baggage"}

RULES = {
    "OTEL_SDK_DISABLED": SWITCH,
    "OTEL_TRACES_EXPORTER": _one_of("otlp", "console", "none"),
    "OTEL_METRICS_EXPORTER": _one_of("otlp", "prometheus", "console", "none"),
    "OTEL_TRACES_SAMPLER": _one_of(
        "always_on", "always_off", "traceidratio",
        "parentbased_always_on", "parentbased_always_off", "parentbased_traceidratio",
    ),
    "OTEL_TRACES_SAMPLER_ARG": Rule(_ratio, "a number from 0 to 1"),
    "OTEL_PROPAGATORS": Rule(
        lambda text: _listed(text) in PROPAGATORS, "tracecontext, which always applies"
    ),
    "OTEL_RESOURCE_ATTRIBUTES": Rule(lambda text: bool(pairs(text)), PAIRS),
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": Rule(_detectors, "names of detectors that are installed"),
    QUEUE: _whole(1),
    BATCH: _whole(1),
    "OTEL_BSP_SCHEDULE_DELAY": MILLISECONDS,
    "OTEL_BSP_EXPORT_TIMEOUT": _whole(0, A_DAY * 1_000),
    "OTEL_ATTRIBUTE_COUNT_LIMIT": COUNT,
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": COUNT,
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": COUNT,
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": COUNT,
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": COUNT,
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": COUNT,
    "OTEL_SPAN_EVENT_COUNT_LIMIT": COUNT,
    "OTEL_SPAN_LINK_COUNT_LIMIT": COUNT,
    "OTEL_METRIC_EXPORT_INTERVAL": MILLISECONDS,
    "OTEL_METRIC_EXPORT_TIMEOUT": MILLISECONDS,
    "OTEL_METRICS_EXEMPLAR_FILTER": _one_of("always_on", "always_off", "trace_based"),
    f"{OTLP}METRICS_TEMPORALITY_PREFERENCE": _one_of("cumulative", "delta", "lowmemory"),
    f"{OTLP}METRICS_DEFAULT_HISTOGRAM_AGGREGATION": _one_of(
        "explicit_bucket_histogram", "base2_exponential_bucket_histogram"
    ),
    "OTEL_EXPORTER_PROMETHEUS_HOST": Rule(lambda text: bool(Host.read(text)), "an address or a host name"),
    "OTEL_EXPORTER_PROMETHEUS_PORT": _whole(0, 65_535),
    "OTEL_PYTHON_SDK_INTERNAL_METRICS_ENABLED": SWITCH,
    "OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES": Rule(_codes, "names of gRPC status codes"),
}  # fmt: skip


def _rules(environ: Environ) -> dict[str, Rule]:
    """The rules, of which some depend on how spans and metrics are sent."""
    rules = dict(RULES)
    general = environ.get(f"{OTLP}PROTOCOL", "")
    for signal in SIGNALS:
        prefix = f"{OTLP}{signal}"
        # A variable for all signals must be usable for each of them.
        protocols = {
            environ.get(f"{OTLP}{one}PROTOCOL", general).lower() for one in ([signal] if signal else SIGNALS)
        }
        over_grpc = "grpc" in protocols
        rules |= {
            f"{prefix}PROTOCOL": _one_of("http/protobuf", "grpc"),
            f"{prefix}ENDPOINT": Rule(
                partial(_endpoint, over_grpc=over_grpc),
                "host:port, or http(s)://host:port" if over_grpc else "http(s)://host:port",
            ),
            f"{prefix}HEADERS": Rule(partial(_headers, over_grpc=over_grpc), PAIRS),
            f"{prefix}TIMEOUT": Rule(_seconds, f"seconds, above 0 and at most {A_DAY}"),
            f"{prefix}COMPRESSION": _one_of("gzip", "none", *([] if over_grpc else ["deflate"])),
            f"{prefix}INSECURE": SWITCH,
            f"{prefix}CERTIFICATE": Rule(_authorities, "a file of certificates in PEM"),
        }
    return rules
