"""The environment in which tests run: not what somebody has set there for gateways, cloners and databases."""

import locale
import re
from collections.abc import MutableMapping
from pathlib import Path

__all__ = ["forget"]

SETTINGS = Path(__file__).parents[2] / "docs" / "CONFIGURATION.md"
# What OpenTelemetry, libpq, gRPC, and programs that write in columns, colours and languages follow.
FOLLOWED = re.compile(
    r"(OTEL_|PG|GRPC_|LC_)[A-Z_]*|LANG(UAGE)?|COLUMNS|LINES|(NO|FORCE)_COLOR|CLICOLOR(_FORCE)?"
)
LOOPBACK = "127.0.0.1,localhost,::1"


def forget(environ: MutableMapping[str, str]) -> None:
    """Takes out of an environment what is said there to whatever tests start, and to what it is built of.

    A proxy stays, since some tests fetch packages; it serves no address of this machine.
    """
    named = settings()
    for name in [*environ]:
        if FOLLOWED.fullmatch(name) or name.removesuffix("_FILE") in named:
            del environ[name]
    for name in ("NO_PROXY", "no_proxy"):
        environ[name] = ",".join(filter(None, (environ.get(name), LOOPBACK)))
    environ["LC_ALL"] = "C.UTF-8" if is_installed("C.UTF-8") else "C"


def is_installed(language: str) -> bool:
    """Whether programs may be told to use that locale."""
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, language)
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True


def settings() -> set[str]:
    """The names of all settings, as documented."""
    rows = (line.split("|")[1] for line in SETTINGS.read_text("utf-8").splitlines() if line.startswith("| `"))
    return {name for row in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", row)}
