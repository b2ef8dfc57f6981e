import json
import subprocess
import sys

import pytest

# A process of its own: logging is set up once in a process, and for the whole of it.
SCRIPT = """
import asyncio, logging, sys
import structlog
from opentelemetry.sdk.trace import TracerProvider
from telemetry import facts, logs

logs.configure("gateway", level="INFO", form=sys.argv[1])
log = structlog.get_logger()
with TracerProvider().get_tracer("t").start_as_current_span("s"), facts.log_context(conversation_id="conv_1"):
    log.info("ours", outcome="success", note='with "quotes" and\\nlines')
    logging.getLogger("theirs").warning("a library's %s", "words")
    log.debug("not told")
    logging.getLogger("httpx").info("not told")
    logging.getLogger("urllib3.connectionpool").info("POST /v1/traces?key=secret")
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").error("at http://x/?key=secret")
    try:
        raise ValueError("marked secret")
    except ValueError:
        logging.getLogger("theirs").exception("it broke")
        log.exception("we broke")
log.info("outside")
from grpc._cython.cygrpc import ExecuteBatchError
for level, raised in ("INFO", ExecuteBatchError()), ("INFO", OSError()), ("WARNING", ExecuteBatchError()):
    logging.getLogger().setLevel(level)
    try:
        raise raised
    except Exception:
        logging.getLogger("grpc._cython.cygrpc").exception("from grpc")
async def forgotten():
    raise KeyError("marked secret")
async def main():
    task = asyncio.create_task(forgotten())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
asyncio.run(main())
"""


def lines(form: str) -> list[str]:
    """What the script wrote, a line each; it must write nothing else."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, form], capture_output=True, text=True, check=True)
    assert "" == done.stderr
    return done.stdout.splitlines()


def test_json() -> None:
    """Every line is an object with service, trace id and conversation id, the libraries' lines too."""
    ours, theirs, broke, we_broke, outside, *of_grpc, forgotten = map(json.loads, lines("json"))

    for told in (ours, theirs, broke, we_broke):
        assert ("gateway", "conv_1") == (told["service.name"], told["gen_ai.conversation.id"])
        assert 32 == len(told["trace_id"])
    assert ("ours", "info", "success") == (ours["event"], ours["level"], ours["precall.outcome"])
    assert "a library's words" == theirs["event"]
    assert "trace_id" not in outside
    assert "gen_ai.conversation.id" not in outside
    # What a client causes that hangs up is no error, and is left out where no such line is wanted.
    assert ["info", "error"] == [told["level"] for told in of_grpc]
    assert forgotten["exception"].startswith("KeyError at ")


def test_text() -> None:
    """Every event is one line of logfmt, whatever it holds."""
    written = lines("text")

    assert 8 == len(written)
    assert all(" level=" in line and " service.name=gateway " in line for line in written)
    assert all("gen_ai.conversation.id=conv_1" in line and "trace_id=" in line for line in written[:4])


@pytest.mark.parametrize("form", ["json", "text"])
def test_exceptions_are_told_without_their_text(form: str) -> None:
    """The type and the place say enough; the text may hold anything."""
    written = "\n".join(lines(form))

    assert "ValueError at " in written
    assert "marked secret" not in written
    assert "Traceback" not in written
