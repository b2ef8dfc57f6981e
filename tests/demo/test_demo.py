import asyncio
import io
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from demo.waterfall import Bar, waterfall
from tests.kit.stand_in import programs

# Nothing here is about how long ElevenLabs takes.
LATENCIES = {"EMULATOR_CREATE_LATENCY_SECONDS": "0.5", "EMULATOR_LATENCY_SECONDS": "0.02"}


# The demo with another Python for the processes that it starts.
FORKING = """
import runpy, sys
sys.executable, sys.argv = sys.argv[1], ["demo", *sys.argv[2:]]
runpy.run_module("demo", run_name="__main__", alter_sys=True)
"""


def demo(*, imports: bool) -> tuple[str, ...]:
    """The demo, as its command runs it.

    What it starts is forked from a process that has imported its modules, unless a test wants `imports`.
    """
    return (
        (sys.executable, "-m", "demo") if imports else (sys.executable, "-c", FORKING, f"{programs()}/python")
    )


async def start(
    *options: str, width: int = 80, folder: Path | None = None, imports: bool = False
) -> asyncio.subprocess.Process:
    """The demo in a session of its own."""
    return await asyncio.create_subprocess_exec(
        *demo(imports=imports), *options,
        env={
            "PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "COLUMNS": str(width), **LATENCIES,
            **({"TMPDIR": str(folder)} if folder else {}),
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


async def read_until(process: asyncio.subprocess.Process, text: str) -> str:
    """What the process wrote up to the end of the line that holds this text."""
    written = ""
    while text not in written:
        line = (await process.stdout.readline()).decode()
        assert line, written
        written += line
    return written


def children(process: asyncio.subprocess.Process) -> list[psutil.Process]:
    """Every process that the demo runs, and theirs."""
    return psutil.Process(process.pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end; a test that fails leaves none behind either."""
    _, alive = psutil.wait_procs(processes, timeout=40)
    for process in alive:
        process.kill()
    return not alive


@pytest.mark.long
async def test_main_job() -> None:
    """Three calls are heard in their callers' voices, and each trace is shown whole, with what came after."""
    process = await start()
    written = (await process.communicate())[0].decode()

    assert 0 == process.returncode, written
    assert ["Maria", "Ivan", "Maria"] == re.findall(r"the agent says “Hallo (\w+), fijn", written)
    assert ["200", "200"] == re.findall(r"answered \[(.*?)\]", written)
    assert ["Maria"] == re.findall(
        r"voices left at ElevenLabs: (\w+)_Clone_\w+$", written, flags=re.MULTILINE
    )
    traces = re.split(r"^trace [0-9a-f]{32}", written, flags=re.MULTILINE)[1:]
    # A voice whose agent is just being put back is tried again.
    roots = [
        "POST /webhook/conversation-init",
        "POST /webhook",
        "POST /webhook",
        "restore agent",
        *["delete voice"] * (len(traces) - 4),
    ]
    assert len(traces) >= 5
    assert [0, 1, 0] == [trace.count("POST /v1/voices/add") for trace in traces[:3]]
    assert [0] * (len(traces) - 4) + [1] == [trace.count("DELETE /v1/voices/") for trace in traces[3:]]
    for trace, root in zip(traces, roots, strict=True):
        rows = [line for line in trace.splitlines() if re.match(r"(gateway|cloner) ", line)]
        assert root == " ".join(rows[0].split()[1:3])
        assert all(re.search(r"━ +\d+\.\d$", row) for row in rows)
    assert [2, 2] == [trace.count("precall.v1.CloningService/PrepareCall") for trace in traces[1:3]]
    assert 2 == traces[0].count("precall.v1.CloningService/OpenCall")
    # Nothing is wider than the terminal, so no id is broken; and what a full screen ends with is the story.
    assert [] == [line for line in written.splitlines() if len(line) > 80]
    told = re.findall(r"in the voice (\w{20})$", written, flags=re.MULTILINE)
    assert [told[0], told[1], told[0]] == told
    last = written.splitlines()[-4:]
    assert [*told, "done"] == [re.search(r"\w{20}|^done", line)[0] for line in last]
    assert len(written.splitlines()) < 70 + 3 * (len(traces) - len(roots[:5]))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_stopped(number: signal.Signals, tmp_path: Path) -> None:
    """Stopped in the middle, it leaves no process, no folder and no complaint behind."""
    process = await start(folder=tmp_path, imports=number == signal.SIGTERM)
    await read_until(process, "up in ")
    started = children(process)
    assert len(started) >= 3

    process.send_signal(number)
    process.send_signal(number)  # an impatient second one changes nothing
    rest = (await process.communicate())[0].decode()

    assert 128 + number == process.returncode, rest
    assert not re.search(r"Traceback|[Ee]rror|Exception", rest)
    assert gone(started)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.long
async def test_killed(tmp_path: Path) -> None:
    """Killed where it can do nothing any more, it takes its processes along."""
    process = await start(folder=tmp_path, imports=True)
    await read_until(process, "up in ")
    started = children(process)

    process.kill()
    await process.wait()

    assert gone(started)


@pytest.mark.long
async def test_reader_gone(tmp_path: Path) -> None:
    """Piped into something that reads one line and leaves, it stops like any other command."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *demo(imports=False), stdout=writing, stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    os.close(writing)
    os.close(reading)

    complaint = (await process.communicate())[1].decode()

    assert (1, "") == (process.returncode, complaint)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_kept(uv: str, tmp_path: Path, left_out) -> None:
    """`just demo --keep` stays up after the story; the commands that it prints work as they are."""
    environ = {
        **os.environ,
        **LATENCIES,
        "UV": uv,
        "UV_NO_SYNC": "1",
        "TMPDIR": str(tmp_path),
        "COLUMNS": "80",
    }
    process = await asyncio.create_subprocess_exec(
        "just", "demo", "--keep", env={**environ, "PYTHONUNBUFFERED": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    written = await read_until(process, "a signed delivery of")
    delivery, init = re.fullmatch(
        r"(.*)what ElevenLabs asks[^\n]*\n(.*)", await read_until(process, "/conversation-init"), re.DOTALL
    ).groups()
    started = children(process)

    if can_ask := bool(shutil.which("curl")):
        commands = [delivery, init]
    else:
        left_out("what the demo prints for curl")
        commands = [delivery]
    asked = [
        await asyncio.create_subprocess_exec(
            "bash", "-c", command, stdout=asyncio.subprocess.PIPE, env={"PATH": os.environ["PATH"]}
        )
        for command in commands
    ]
    answered = [(await each.communicate())[0].decode() for each in asked]
    drawn = await read_until(process, "POST /v1/voices/add")
    process.send_signal(signal.SIGTERM)
    rest = (await process.communicate())[0].decode()

    (maria, _, _) = re.findall(r"in the voice (\w{20})$", written, flags=re.MULTILINE)
    assert {0} == {each.returncode for each in asked}
    assert '"status": "success"' in answered[0]
    assert not can_ask or maria in answered[1]
    assert "POST /webhook " in drawn
    assert 143 == process.returncode
    assert "error" not in rest.lower()
    assert gone(started)
    assert [] == [path for path in tmp_path.iterdir() if path.name.startswith("precall")]


def test_waterfall_of_a_broken_trace() -> None:
    """A span whose parent never arrived still has its row."""
    bar = Bar(
        span_id="a", parent_id="lost", service="cloner", name="late", began=0, ended=2_000_000, failed=True
    )

    table = waterfall("0" * 32, [bar], width=80)

    assert [["late ✗"], ["2.0"]] == [list(table.columns[column].cells) for column in (1, 3)]


@pytest.mark.parametrize("width", [60, 66, 80])
def test_waterfall_of_a_narrow_terminal(width: int) -> None:
    """What is short stands whole: services and times."""
    name = "precall.v1.CloningService/PrepareCall"
    times = {"began": 0, "ended": 5_050_600_000}
    rows = [
        Bar(span_id=span, parent_id=parent, service="gateway", name=name, failed=False, **times)
        for span, parent in (("a", ""), ("b", "a"), ("c", "b"))
    ]
    written = io.StringIO()

    Console(file=written, width=width).print(waterfall("0" * 32, rows, width=width))

    assert 3 == written.getvalue().count("5050.6")
    assert 3 == written.getvalue().count("gateway")
