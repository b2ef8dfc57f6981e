"""The process: `python -m emulator`."""

import asyncio
import os
import re
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from emulator.settings import Latency, Settings, SettingsError, from_environ, oddities
from tests.kit import forked
from tests.kit.forked import Program

KEY = "key-that-no-log-may-show"
WAV = b"RIFF\x24\x00\x00\x00WAVEfmt sample-that-no-log-may-show"
VARIABLES = {
    "EMULATOR_PORT": "0",
    "EMULATOR_API_KEY": KEY,
    "EMULATOR_CREATE_LATENCY_SECONDS": "0",
    "EMULATOR_LATENCY_SECONDS": "0",
}


@asynccontextmanager
async def started(*, imports: bool = False, **variables: str) -> AsyncIterator[Process | Program]:
    """Run the process, to which a warning is an error, and leave none behind."""
    environ = {"PATH": os.environ["PATH"], "PYTHONWARNINGS": "error", **variables}
    async with forked.started("emulator", environ=environ, imports=imports) as emulator:
        yield emulator


async def ready(process: Process | Program) -> str:
    """Wait for the line that says it serves, and return the address in it."""
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    found = re.fullmatch(r"emulator ready on (http://127\.0\.0\.1:[1-9][0-9]*)\n", line)
    assert found, line
    return found[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal(number: signal.Signals) -> None:
    """Ends quickly and quietly with status 0, a request under way or not."""
    async with started(imports=number == signal.SIGTERM, **VARIABLES) as process:
        url = await ready(process)
        async with httpx.AsyncClient(verify=False, base_url=url, headers={"xi-api-key": KEY}) as http:
            await http.post(
                "/emulator/faults", json=[{"method": "GET", "path": "/v1/voices", "hold": "before"}]
            )
            asking = asyncio.create_task(http.get("/v1/voices"))
            await http.get("/emulator/requests", params={"stage": "held", "count": 1})

            process.send_signal(number)
            stdout, stderr = await asyncio.wait_for(process.communicate(), timeout=5)

            with pytest.raises(httpx.RemoteProtocolError):
                await asking

    assert (0, b"", b"") == (process.returncode, stdout, stderr)


async def test_log() -> None:
    """Logs what it was asked, without key, sample, name or query, and dropped connections without noise."""
    async with started(**VARIABLES) as process:
        url = await ready(process)
        async with httpx.AsyncClient(verify=False, base_url=url, headers={"xi-api-key": KEY}) as http:
            await http.post(
                "/emulator/faults", json=[{"method": "GET", "path": "/v2/voices", "drop": "after"}]
            )
            await http.post(
                "/v1/voices/add",
                data={"name": "Nobody-Knows"},
                files={"files": ("sample.wav", WAV, "audio/wav")},
            )
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get("/v2/voices", params={"search": "Nobody-Knows"})
        process.terminate()
        _, stderr = await process.communicate()

    lines = stderr.decode().splitlines()
    assert 2 == len(lines), lines
    assert "POST /v1/voices/add 200 in" in lines[0]
    assert "GET /v2/voices dropped in" in lines[1]
    assert [] == [secret for secret in (KEY, "Nobody", "no-log", "RIFF") if secret in stderr.decode()]


async def test_bad_settings() -> None:
    """Stops with status 2 and one line that names every variable at fault, and repeats no value."""
    async with started(EMULATOR_PORT="99999", EMULATOR_API_KEY="two words", LOG_LEVEL="loud") as process:
        stdout, stderr = await process.communicate()

    assert (2, b"", 1) == (process.returncode, stdout, stderr.count(b"\n"))
    assert [True, True, True, False] == [
        text in stderr for text in (b"EMULATOR_PORT", b"EMULATOR_API_KEY", b"LOG_LEVEL", b"two words")
    ]


async def test_address_taken() -> None:
    """Stops with status 1 and one line when the address is not to be had."""
    async with started(**VARIABLES) as first:
        port = (await ready(first)).rpartition(":")[2]
        async with started(**VARIABLES | {"EMULATOR_PORT": port}) as second:
            stdout, stderr = await second.communicate()

    assert (1, b"", 1) == (second.returncode, stdout, stderr.count(b"\n"))


def test_defaults() -> None:
    """Takes the documented defaults where nothing, or nothing but space, is set."""
    assert Settings() == from_environ({"EMULATOR_PORT": " ", "LOG_LEVEL": ""})


def test_all_set() -> None:
    """Reads every variable."""
    settings = from_environ(
        {
            "EMULATOR_HOST": "0.0.0.0",
            "EMULATOR_PORT": "9000",
            "EMULATOR_API_KEY": "k",
            "EMULATOR_CREATE_LATENCY_SECONDS": "0.5",
            "EMULATOR_LATENCY_SECONDS": "0-1.25",
            "EMULATOR_VOICE_LIMIT": "3",
            "EMULATOR_MONTHLY_LIMIT": "none",
            "LOG_LEVEL": "debug",
        }
    )

    assert settings == Settings(
        host="0.0.0.0",
        port=9000,
        api_key="k",
        create_latency=Latency(0.5, 0.5),
        latency=Latency(0, 1.25),
        voice_limit=3,
        monthly_limit=None,
        log_level="DEBUG",
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EMULATOR_HOST", "two words"),
        ("EMULATOR_HOST", "localhost:8090"),
        ("EMULATOR_HOST", "http://localhost"),
        ("EMULATOR_PORT", "65536"),
        ("EMULATOR_PORT", "-1"),
        ("EMULATOR_PORT", "٣"),
        ("EMULATOR_CREATE_LATENCY_SECONDS", "5-2"),
        ("EMULATOR_LATENCY_SECONDS", "nan"),
        ("EMULATOR_LATENCY_SECONDS", "1-2-3"),
        ("EMULATOR_VOICE_LIMIT", "none"),
        ("EMULATOR_VOICE_LIMIT", "9" * 5000),
        ("EMULATOR_MONTHLY_LIMIT", "many"),
    ],
)
def test_malformed(variable: str, value: str) -> None:
    """Names the variable that is malformed."""
    with pytest.raises(SettingsError, match=f"^{variable} must be ") as caught:
        from_environ({variable: value})

    assert "\n" not in str(caught.value)


def test_brackets() -> None:
    """IPv6 may stand in brackets."""
    assert ["::", "::1"] == [from_environ({"EMULATOR_HOST": host}).host for host in ("[::]", "::1")]


def test_oddities() -> None:
    """What Kubernetes sets counts as not set, and is told; so is what nobody reads, without its value."""
    environ = {
        "EMULATOR_PORT": "tcp://10.0.0.1:8090", "EMULATOR_PORT_8090_TCP": "tcp://10.0.0.1:8090",
        "EMULATOR_SERVICE_HOST": "10.0.0.1", "EMULATOR_VOICES_LIMIT": "marked", "EMULATOR_REPLICAS": "1",
    }  # fmt: skip

    assert 8090 == from_environ(environ).port
    assert [
        "EMULATOR_PORT was set by an orchestrator for a service of that name: it counts as not set",
        "unknown variable EMULATOR_VOICES_LIMIT, did you mean EMULATOR_VOICE_LIMIT?",
    ] == oddities(environ)


def test_key_is_not_shown() -> None:
    """Keeps the key out of the settings' own text."""
    assert KEY not in repr(Settings(api_key=KEY))
