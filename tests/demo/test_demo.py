import asyncio
import os
import re
import signal
import socket
import sys

import pytest

from demo.waterfall import Bar, waterfall


async def start() -> asyncio.subprocess.Process:
    """The demo, as its command runs it."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "demo",
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", "COLUMNS": "100"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.long
async def test_main_job() -> None:
    """Three calls are heard in their callers' voices, and each trace is shown whole, with what came after."""
    process = await start()
    written = (await process.communicate())[0].decode()

    assert 0 == process.returncode, written
    assert ["Maria", "Ivan", "Maria"] == re.findall(r"the agent says “Hallo (\w+), fijn", written)
    assert [["200"], ["200"]] == [found.split() for found in re.findall(r"answered \[(.*?)\]", written)]
    assert ["Maria"] == re.findall(
        r"voices left at ElevenLabs: (\w+)_Clone_\w+$", written, flags=re.MULTILINE
    )
    traces = re.split(r"^trace [0-9a-f]{32}", written, flags=re.MULTILINE)[1:]
    roots = [
        "POST /webhook/conversation-init",
        "POST /webhook",
        "POST /webhook",
        "restore agent",
        "delete voice",
    ]
    assert [0, 1, 0, 0, 0] == [trace.count("POST /v1/voices/add") for trace in traces]
    for trace, root in zip(traces, roots, strict=True):
        rows = [line for line in trace.splitlines() if re.match(r"(gateway|cloner) ", line)]
        assert root == " ".join(rows[0].split()[1:3])
        assert all(re.search(r"━ +\d+\.\d$", row) for row in rows)
    assert [2, 2] == [trace.count("precall.v1.CloningService/PrepareCall") for trace in traces[1:3]]
    assert 2 == traces[0].count("precall.v1.CloningService/OpenCall")


async def test_ctrl_c() -> None:
    """Stopped in the middle, it leaves no process and no complaint behind."""
    process = await start()
    line = ""
    while ": up in " not in line:
        line += (await process.stdout.readline()).decode()
    ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", line)]
    assert 3 == len(ports)

    process.send_signal(signal.SIGINT)
    rest = (await process.communicate())[0].decode()

    assert 130 == process.returncode, rest
    assert "Traceback" not in rest
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_waterfall_of_a_broken_trace() -> None:
    """A span whose parent never arrived still has its row."""
    bar = Bar(
        span_id="a", parent_id="lost", service="cloner", name="late", began=0, ended=2_000_000, failed=True
    )

    table = waterfall("0" * 32, [bar], width=80)

    assert [["late ✗"], ["2.0"]] == [list(table.columns[column].cells) for column in (1, 3)]
