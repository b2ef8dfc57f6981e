"""Callers in other languages, as they generate their code or ask for what is served."""

import asyncio
import json
import os
import platform
import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from precall.v1 import cloning_pb2 as pb

from environment import Secret
from tests.kit.golang import CHEAPLY, GENERATOR
from tests.kit.ports import free_port
from tests.kit.processes.cloner import API_KEY, process, ready

ROOT = Path(__file__).parents[2]
LANGUAGES = Path(__file__).parent
TOKEN = "token-of-the-cloner-in-tests"
LIST = "precall.v1.CloningService/ListVoices"
CLONE, WATCH = (f"precall.v1.CloningService/{name}" for name in ("CloneVoice", "WatchVoice"))
SERVED = {
    f"precall.v1.CloningService.{method.name}"
    for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods
}
# What runs once is done before it has been compiled well: to try that took twice the processor time.
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
# Nobody debugs these programs: to link what a debugger reads took half of the processor time of linking.
LINKING = ("-ldflags=-s",)
# What is not here after that long is not to be had. Nothing is downloaded twice: it stays where its tool keeps it.
FETCH_SECONDS = 120
LeftOut = Callable[[str], None]
Alone = AbstractAsyncContextManager[None]


async def run(*command: str, cwd: Path | None = None) -> tuple[int | None, str, str]:
    """What a program says, and how it ends."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | CHEAPLY | {"JAVA_TOOL_OPTIONS": JVM},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


def missing(*tools: str) -> str:
    """The tools that this machine lacks, as words; empty where it has them all."""
    return " and ".join(tool for tool in tools if shutil.which(tool) is None)


def laid(name: str, folder: Path) -> Path:
    """A client's folder, where what is generated and built may lie beside its sources."""
    return Path(shutil.copytree(LANGUAGES / name, folder / name))


async def fetched(*command: str, cwd: Path) -> bool:
    """Whether a package client has what it was asked for; a registry that does not answer is nobody's fault."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            return 0 == (await run(*command, cwd=cwd))[0]
    except TimeoutError:
        return False


async def built(folder: Path, *commands: tuple[str, ...]) -> None:
    """Generates from the contract and compiles, without a word of complaint."""
    for command in (("buf", "generate", str(ROOT / "proto")), *commands):
        status, out, err = await run(*command, cwd=folder)
        assert 0 == status, (command, out, err)


async def built_alone(alone: Alone, module: Path, *commands: tuple[str, ...]) -> None:
    """As `built`, for what is in Go."""
    async with alone:
        assert 0 == (await run(*GENERATOR, cwd=module))[0]
        await built(module, *commands)


async def clones(cloning: Any, emulator: Any, sample: Path, *command: str, cwd: Path, told: str) -> None:
    """A caller of another language clones a voice, and reads why a failure is one."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        status, out, err = await run(*command, f"localhost:{cloner.port}", TOKEN, str(sample), cwd=cwd)

    assert 0 == status, err
    (voice,) = emulator.voices.custom
    assert f"{voice.voice_id}\n{told}\n" == out


async def module_of_go(folder: Path, what: str, left_out: LeftOut) -> Path | None:
    """Our module for Go, with what it needs; None, and `what` is told as left out, where that cannot be had."""
    if lacking := missing("go"):
        left_out(f"{what}: there is no {lacking}")
        return None
    module = laid("go", folder)
    if not await fetched("go", "mod", "download", cwd=module):
        left_out(f"{what}: its modules cannot be had")
        return None
    return module


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_go(
    cloning, emulator: Any, samples: Path, tmp_path: Path, compiling_go: Alone, left_out: LeftOut
) -> None:
    """The package that buf generates for Go compiles under its own name, and clones a voice with gRPC's defaults."""
    if (module := await module_of_go(tmp_path, "a client in Go", left_out)) is None:
        return
    compiling = ("go", "vet", "./..."), ("go", "build", *LINKING, "-o", "caller", ".")
    await built_alone(compiling_go, module, *compiling)

    await clones(
        cloning,
        emulator,
        samples / "speech.mp3",
        str(module / "caller"),
        cwd=module,
        told="NotFound NOT_FOUND",
    )


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_trace_of_go(
    cloning, spans: Any, samples: Path, tmp_path: Path, compiling_go: Alone, left_out: LeftOut
) -> None:
    """A trace that OpenTelemetry began in Go goes on here, in a call of one answer and in a stream."""
    if (module := await module_of_go(tmp_path, "a trace that begins in Go", left_out)) is None:
        return
    await built_alone(compiling_go, module, ("go", "build", *LINKING, "-o", "calling", "./traced"))

    async with cloning() as cloner:
        command = (str(module / "calling"), f"localhost:{cloner.port}", str(samples / "speech.mp3"))
        status, out, err = await run(*command, cwd=module)
        assert 0 == status, err
        await spans.wait(WATCH)

    theirs = {name: (trace, span) for trace, span, name in (line.split() for line in out.splitlines())}
    assert {CLONE, WATCH, "root"} == set(theirs)
    for name in (CLONE, WATCH):
        ours = spans.one(name)
        assert theirs[name] == (f"{ours.context.trace_id:032x}", f"{ours.parent.span_id:016x}")
    (trace,) = {trace for trace, _ in theirs.values()}
    assert {trace} == {
        f"{span.context.trace_id:032x}"
        for span in spans.finished()
        if span.name in ("inspect sample", "POST /v1/voices/add")
    }


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_typescript(cloning, emulator: Any, samples: Path, tmp_path: Path, left_out: LeftOut) -> None:
    """What buf generates for TypeScript passes the strict compiler, clones a voice and watches it."""
    if lacking := missing("node", "npm"):
        left_out(f"a client in TypeScript: there is no {lacking}")
        return
    folder = laid("typescript", tmp_path)
    if not await fetched("npm", "ci", "--prefer-offline", "--no-audit", "--no-fund", cwd=folder):
        left_out("a client in TypeScript: its packages cannot be had")
        return
    # What a failure is made of is Google's, and comes as a proto of theirs.
    details = Path(error_details_pb2.__file__).with_name("error_details.proto")
    theirs = folder / "theirs" / "google" / "rpc"
    theirs.mkdir(parents=True)
    shutil.copy(details, theirs)
    await built(folder, ("buf", "generate", "theirs"), ("node_modules/.bin/tsc",))

    told = "READY\nNotFound NOT_FOUND"
    await clones(
        cloning,
        emulator,
        samples / "speech.mp3",
        "node",
        str(folder / "out" / "main.js"),
        cwd=folder,
        told=told,
    )


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_java(cloning, emulator: Any, samples: Path, tmp_path: Path, left_out: LeftOut) -> None:
    """What buf generates for Java compiles, and clones a voice with gRPC's defaults."""
    if lacking := missing("java", "javac", "mvn"):
        left_out(f"a client in Java: there is no {lacking}")
        return
    if "x86_64" != platform.machine():
        left_out("a client in Java: its code generators are for another processor")
        return
    folder = laid("java", tmp_path)
    goals = ("copy-dependencies", "copy")
    plugin = "org.apache.maven.plugins:maven-dependency-plugin:3.11.0"
    where = ("-DoutputDirectory=.", "-Dmdep.useBaseVersion=true")
    if not await fetched("mvn", "-q", "-B", *(f"{plugin}:{goal}" for goal in goals), *where, cwd=folder):
        left_out("a client in Java: its packages cannot be had")
        return
    for generator in folder.glob("*.exe"):
        generator.chmod(0o755)
    sources = folder / "sources"
    await built(
        folder,
        ("find", "gen", "Caller.java", "-name", "*.java", "-fprint", str(sources)),
        ("javac", "-proc:none", "-classpath", "*", "-d", "out", f"@{sources}"),
    )

    java = ("java", "-classpath", f"{folder}/out:{folder}/*", "Caller")
    await clones(cloning, emulator, samples / "speech.mp3", *java, cwd=folder, told="NOT_FOUND NOT_FOUND")


@pytest.mark.long(first=True)
@pytest.mark.timeout(600)
async def test_rolling_restart(
    emulator_url: str, sqlite: str, tmp_path: Path, compiling_go: Alone, left_out: LeftOut
) -> None:
    """A client in Go with gRPC's defaults, which knows nothing of retries or health, loses no call."""
    if (module := await module_of_go(tmp_path, "a rolling restart under a client in Go", left_out)) is None:
        return
    await built_alone(compiling_go, module, ("go", "build", *LINKING, "-o", "calling", "./steady"))
    settings = {
        "ELEVENLABS_API_KEY": API_KEY, "ELEVENLABS_BASE_URL": emulator_url,
        "DATABASE_URL": sqlite, "CALLER_HASH_KEY": "key-of-the-hashes",
        "LOG_LEVEL": "ERROR",  # nobody reads what they write, and a full pipe would hold them up
        "DRAIN_SECONDS": "0",  # such a client does not look at the health
    }  # fmt: skip
    # On a machine that stands still a call may be sent while GOAWAY is on its way, which nobody can help; not each time.
    for _ in range(3):
        said = await _restarted(module, settings)
        if "lost" not in said:
            break

    assert "lost" not in said
    assert said.endswith("end true 0\n")


async def _restarted(module: Path, settings: dict[str, str]) -> str:
    """What a client says of its calls while each of two cloners is restarted twice."""
    async with AsyncExitStack() as stack:
        start = stack.enter_async_context
        # Each comes back where it was, so that port must be nobody else's meanwhile.
        ports = [str(free_port()) for _ in range(2)]
        running = [await start(process(**settings, CLONER_PORT=port)) for port in ports]
        for each in running:
            await ready(each)
        caller = await asyncio.create_subprocess_exec(
            str(module / "calling"), *(f"127.0.0.1:{port}" for port in ports),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        stack.callback(lambda: caller.returncode is None and caller.kill())
        said: list[str] = []

        async def until_answered(times: int) -> None:
            """Waits until it has said so often more that 250 calls were answered."""
            while times:
                said.append((await caller.stdout.readline()).decode())
                assert said[-1], said
                times -= said[-1].startswith("answered")

        await until_answered(1)
        for at in (0, 1, 0, 1):
            running[at].terminate()
            assert 0 == await asyncio.wait_for(running[at].wait(), 60)
            running[at] = await start(process(**settings, CLONER_PORT=ports[at]))
            await ready(running[at])
            await until_answered(2)
        caller.stdin.close()
        said.append((await caller.stdout.read()).decode())
    return "".join(said)


async def test_buf_curl(cloning) -> None:
    """Knowing nothing but the address and a token, buf finds out what is served, and calls it."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        asked = ("buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", "{}")
        url = f"http://127.0.0.1:{cloner.port}/{LIST}"
        shown = (
            "--header",
            f"authorization: Bearer {TOKEN}",
            "--reflect-header",
            f"authorization: Bearer {TOKEN}",
        )
        known = await run(*asked, *shown, url)
        stranger = await run(*asked, url)

    assert (0, {}) == (known[0], json.loads(known[1] or "null"))
    assert (True, "") == (stranger[0] != 0, stranger[1])


async def test_grpcurl(cloning, left_out: LeftOut) -> None:
    """As buf does, so does grpcurl, where it is at hand: to build it takes minutes of processor time."""
    grpcurl = shutil.which("grpcurl")
    if grpcurl is None:
        left_out("grpcurl: there is none")
        return
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        target = f"127.0.0.1:{cloner.port}"
        shown = ("-plaintext", "-H", f"authorization: Bearer {TOKEN}")
        listed = await run(grpcurl, *shown, target, "list", "precall.v1.CloningService")
        told = await run(grpcurl, *shown, target, LIST)
        stranger = await run(grpcurl, "-plaintext", target, "list")

    assert (0, SERVED) == (listed[0], set(listed[1].split()))
    assert (0, {}) == (told[0], json.loads(told[1] or "null"))
    assert (True, "") == (stranger[0] != 0, stranger[1])
