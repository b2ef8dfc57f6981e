"""A registry that is kept in a file and put back: on both databases, and from one into the other."""

import asyncio
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from precall.v1 import cloning_pb2 as pb

from cloner.backup.archive import BackupInvalid
from cloner.backup.command import reading
from cloner.registry import NewCall, Transaction, calls, opened
from cloner.registry.statement import Statement
from cloner.voices.hash_key import settled
from emulator import Emulator, Fault
from environment import Key
from tests.kit.postgres import new_database
from tests.kit.processes.cloner import process, until_ready
from tests.kit.python import python
from tests.kit.releases import LATEST, of_next_release
from tests.kit.rows import Row, rows, until_none, until_unlocked, values

CREATE = "/v1/voices/add"
KEY = "key-of-the-hashes"
TABLES = ("agents", "calls", "deployment", "voices")
NOW = 1_700_000_000.0
FIRST = Path(__file__).parents[1] / "backups" / "0005.backup"
KEY_OF_FIRST = "0123456789abcdef0123456789abcdef"

# Each starts several processes, which a busy machine takes its time for.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def registry(completed) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Exit status, output and errors of a command on a registry."""

    async def run(
        command: str, file: Path | str, database: str, *more: str, told: bytes = b"", **environ: str
    ) -> tuple[int, str, str]:
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": database, "CALLER_HASH_KEY": KEY} | environ
        return await completed("cloner.backup", command, str(file), *more, environ=environ, told=told)

    return run


@pytest.fixture
def another(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str]:
    """Says the URL of one more empty database, of a kind."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            (tmp_path / "another").mkdir(exist_ok=True)
            return f"sqlite:///{tmp_path}/another/precall.sqlite3"
        return new_database(request.getfixturevalue("postgres"))

    return make


def like(database: str) -> str:
    """Of which kind a database is."""
    return "sqlite" if database.startswith("sqlite") else "postgres"


def call(sample: bytes, name: str = "Ivan", number: int = 1, **changes: Any) -> pb.PrepareCallRequest:
    """A request of a caller for the demo agent."""
    caller = pb.Caller(name=name, phone_number=f"+3161234{number:04}")
    fields = {"agent_id": "agent_demo", "conversation_id": f"conv_{name}", "caller": caller, "sample": sample}
    return pb.PrepareCallRequest(**{**fields, **changes})


def end(name: str = "Ivan") -> pb.CompleteCallRequest:
    """The report that a caller's call is over."""
    return pb.CompleteCallRequest(conversation_id=f"conv_{name}", agent_id="agent_demo")


def a_while_ago() -> float:
    """The clock of a cloner whose last sign of life is not waited out before a registry is restored."""
    return time.time() - 60


def spoken(emulator: Emulator, agent: str = "agent_demo") -> str:
    """The voice that an agent speaks with."""
    return emulator.agents[agent]["conversation_config"]["tts"]["voice_id"]


async def put_back(database: str) -> None:
    """Waits until every agent is known to have what it had."""
    await until_none(database, "SELECT 1 FROM agents WHERE marker IS NOT NULL")


async def content(database: str) -> dict[str, list[Row]]:
    """Every row of a registry, in a fixed order."""
    found = {}
    for table in TABLES:
        found[table] = sorted(await rows(database, f"SELECT * FROM {table}"), key=repr)
        for row in found[table]:
            # SQLite knows no truth but 0 and 1.
            for column in ("restoring", "confirmed"):
                if column in row:
                    row[column] = bool(row[column])
    return found


def begin(tx: Transaction, number: int) -> None:
    """A transaction that leaves two calls, which are never one without the other."""
    for half in ("left", "right"):
        text = f"{half}_{number}"
        new = NewCall(
            id=text, agent_id="agent_demo", conversation_id=text, caller=text, stated=text, begun_at=NOW
        )
        calls.begin(tx, new)


def begin_all(tx: Transaction, numbers: range) -> None:
    """As many at once."""
    for number in numbers:
        begin(tx, number)


@pytest.mark.parametrize("into", ["sqlite", "postgres"])
async def test_there_and_back(
    registry, cloning, database: str, another, into: str, emulator: Emulator, speech: bytes, tmp_path: Path
) -> None:
    """Everything is as it was, in either database; what may have changed at ElevenLabs is to be looked at."""
    before = spoken(emulator)
    async with cloning(require_consent=False) as cloner:
        caller = pb.Caller(name="Zoë 家族 👩‍👩‍👧", phone_number="+31612340002")
        given = await cloner.PrepareCall(call(speech, "Maria", 3), timeout=10)
        # While Maria speaks with the agent, it is given nobody else's voice.
        await cloner.PrepareCall(call(speech), timeout=10)
        await cloner.CompleteCall(end(), timeout=10)
        await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=caller, sample=speech, consent='form "17" \\'), timeout=10
        )
        made = await registry("backup", tmp_path / "kept", database)
        there = await content(database)
    target = another(into)
    check = await registry("check", tmp_path / "kept", "sqlite:///nowhere.sqlite3")
    restored = await registry("restore", tmp_path / "kept", target)

    name = there["deployment"][0]["name"]
    holds = f"3 voices, 2 calls and 1 agents of deployment {name}"
    note = "without its key, which is CALLER_HASH_KEY"
    assert (0, f"{tmp_path}/kept holds {holds}, {note}\n", "") == made
    assert (0, f"{tmp_path}/kept is whole: {holds}, {note}\n", "") == check
    assert (0, f"restored {holds}", "") == (restored[0], restored[1].splitlines()[-1], restored[2])
    assert (before, given.voice.voice_id) == (there["agents"][0]["before_voice_id"], spoken(emulator))
    there["deployment"][0]["reconciled_until"] = 0
    there["agents"][0] |= {"restoring": True, "held_until": 0, "holder": ""}
    for row in there["voices"]:
        row["checked_at"] = 0
    assert {table: sorted(found, key=repr) for table, found in there.items()} == await content(target)
    assert [] == await rows(target, "SELECT * FROM processes")


async def test_while_writes_go_on(registry, database: str, another, tmp_path: Path) -> None:
    """A back-up shows one moment of a registry that is written to meanwhile, and keeps nobody waiting."""
    longest = 0.0
    async with opened(database, name="tested", now=NOW) as store:
        for first in range(0, 2_000, 50):
            await store.write(begin_all, range(first, first + 50))
        making = asyncio.create_task(registry("backup", tmp_path / "kept", database))
        number = 2_000
        while not making.done():
            began = time.monotonic()
            await store.write(begin, number)
            longest = max(longest, time.monotonic() - began)
            number += 1
            await asyncio.sleep(0)
        assert 0 == (await making)[0]
        await store.write(begin, number)
    target = another(like(database))
    assert 0 == (await registry("restore", tmp_path / "kept", target))[0]

    found = {row[0] for row in await values(target, "SELECT id FROM calls")}
    left = {text.removeprefix("left_") for text in found if text.startswith("left_")}
    right = {text.removeprefix("right_") for text in found if text.startswith("right_")}
    assert left == right
    assert {str(number) for number in range(len(left))} == left
    assert 2_000 <= len(left) <= number
    assert longest < 5


async def test_cloner_on_what_was_restored(
    registry, cloning, database: str, another, emulator: Emulator, speech: bytes, tmp_path: Path
) -> None:
    """Callers, calls and voices are known; nothing is cloned again, and no ended call touches its agent."""
    before = spoken(emulator)
    async with cloning() as cloner:
        first = await cloner.PrepareCall(call(speech), timeout=10)
        await cloner.CompleteCall(end(), timeout=10)
    assert 0 == (await registry("backup", tmp_path / "kept", database))[0]
    target = another(like(database))
    assert 0 == (await registry("restore", tmp_path / "kept", target))[0]

    async with cloning(database_url=target) as cloner:
        known = await cloner.OpenCall(
            pb.OpenCallRequest(agent_id="agent_other", conversation_id="conv_x", phone_number="+31612340001")
        )
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_2"), timeout=10)
        ended = await cloner.PrepareCall(call(speech), timeout=10)

    assert first.voice.voice_id == known.voice.voice_id == again.voice.voice_id == ended.voice.voice_id
    assert (True, True, False) == (again.voice_reused, ended.voice_reused, ended.agent_updated)
    assert 1 == len(emulator.requests.matching(path=CREATE))
    assert before != first.voice.voice_id


async def test_key_goes_along(
    registry, emulator: Emulator, emulator_url: str, speech: bytes, tmp_path: Path
) -> None:
    """Processes on a SQLite file: what was kept beside it comes back, also on a machine without anything."""
    import grpc
    from precall.v1.cloning_pb2_grpc import CloningServiceStub

    answers = []
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        url = f"sqlite:///{tmp_path}/{folder}/precall.sqlite3"
        if answers:
            restored = await registry("restore", tmp_path / "kept", url, CALLER_HASH_KEY="")
            assert (0, "") == (restored[0], restored[2])
        async with process(
            ELEVENLABS_API_KEY="key-of-the-emulator", ELEVENLABS_BASE_URL=emulator_url, CLONER_PORT="0",
            DATABASE_URL=url,
        ) as started:  # fmt: skip
            address = (await until_ready(started))[-1].removeprefix("cloner ready on ")
            async with grpc.aio.insecure_channel(address) as channel:
                stub = CloningServiceStub(channel)
                answers.append(await stub.PrepareCall(call(speech, conversation_id=folder), timeout=20))
            if folder == "first":
                # The cloner is at work, and is killed after that.
                made = await registry("backup", tmp_path / "kept", url, CALLER_HASH_KEY="")
                assert (0, True) == (made[0], made[1].endswith(", with its key\n"))

    assert [False, True] == [answer.voice_reused for answer in answers]
    assert 1 == len(emulator.requests.matching(path=CREATE))
    keys = [tmp_path / folder / "precall.sqlite3.key" for folder in ("first", "second")]
    assert keys[0].read_bytes() == keys[1].read_bytes()
    for private in (tmp_path / "kept", *keys, tmp_path / "second" / "precall.sqlite3"):
        assert 0o600 == stat.S_IMODE(private.stat().st_mode)


async def test_keys_that_do_not_fit(registry, another, postgres: str, tmp_path: Path) -> None:
    """A registry never ends up beside a key that knows none of its callers, and no key is written over."""
    source = another("sqlite")
    async with opened(source, name="tested", now=NOW):
        pass
    key = tmp_path / "another" / "precall.sqlite3.key"
    key.write_text("the-key-beside-the-file\n")
    kept, told = tmp_path / "kept", tmp_path / "told"
    assert 0 == (await registry("backup", kept, source, CALLER_HASH_KEY=""))[0]
    assert 0 == (await registry("backup", told, source))[0]
    assert [1, 0] == [file.read_text().count("the-key-beside-the-file") for file in (kept, told)]
    empty, server = f"sqlite:///{tmp_path}/empty.sqlite3", new_database(postgres)
    beside = tmp_path / "empty.sqlite3.key"

    refused = await asyncio.gather(
        registry("restore", kept, empty),
        registry("restore", kept, server),
        registry("restore", kept, server, CALLER_HASH_KEY=""),
        registry("restore", told, empty, CALLER_HASH_KEY=""),
        registry("restore", told, server, CALLER_HASH_KEY=""),
    )
    assert [(2, "", 1)] * 5 == [(status, out, len(err.splitlines())) for status, out, err in refused]
    assert all("CALLER_HASH_KEY" in err for _, _, err in refused)
    assert not (tmp_path / "empty.sqlite3").exists()
    assert not beside.exists()

    beside.write_text("the-key-of-somebody-else")
    status, _, err = await registry("restore", kept, empty, CALLER_HASH_KEY="")
    assert (1, True) == (status, err.startswith(f"precall-registry: {beside} is another key"))
    assert "the-key-of-somebody-else" == beside.read_text()
    assert 0 == (await registry("restore", kept, empty, "--replace", CALLER_HASH_KEY=""))[0]
    assert "the-key-beside-the-file" == beside.read_text()

    status, _, _ = await registry(
        "restore", kept, server, "--key-file", str(tmp_path / "key"), CALLER_HASH_KEY=""
    )
    assert (0, "the-key-beside-the-file") == (status, (tmp_path / "key").read_text())
    assert 0 == (await registry("restore", told, another("postgres")))[0]


async def test_key_that_the_registry_knows(registry, database: str, another, tmp_path: Path) -> None:
    """A back-up whose key is told holds none, says so when it is checked, and is restored under that key only."""
    async with opened(database, name="tested", now=NOW) as store:
        await settled(store, database, Key.read(KEY))
    made = await registry("backup", tmp_path / "kept", database)
    check = await registry("check", tmp_path / "kept", database, CALLER_HASH_KEY="")
    restored = [
        (await registry("restore", tmp_path / "kept", another("sqlite"), CALLER_HASH_KEY=key))[0]
        for key in ("", "the-key-of-somebody-else", KEY)
    ]

    note = ", without its key, which is CALLER_HASH_KEY\n"
    assert [(0, True), (0, True)] == [(status, out.endswith(note)) for status, out, _ in (made, check)]
    assert [2, 2, 0] == restored


@pytest.mark.parametrize("told", ["", "the-key-of-somebody-else"])
async def test_key_that_is_lost(registry, database: str, tmp_path: Path, told: str) -> None:
    """No back-up is made of a registry whose callers nobody could tell apart, and a line says what to do."""
    async with opened(database, name="tested", now=NOW) as store:
        await settled(store, database, Key.read(KEY))
    status, out, err = await registry("backup", tmp_path / "kept", database, CALLER_HASH_KEY=told)
    piped = await registry("backup", "-", database, CALLER_HASH_KEY=told)

    beside = f"{database.removeprefix('sqlite:///')}.key"
    if told:
        says = "CALLER_HASH_KEY is not the key by which the registry knows its callers: set it to that one"
    elif like(database) == "sqlite":
        says = (
            f"{beside} is missing, by which the registry knows its callers: put it back, or set CALLER_HASH_KEY"
            " to what it held"
        )
    else:
        says = "CALLER_HASH_KEY is required: the key by which the registry knows its callers"
    assert (2, "", f"precall-registry: {says}\n") == (status, out, err)
    assert piped == (status, out, err)
    assert not (tmp_path / "kept").exists()


async def test_key_beside_that_is_another(registry, another, tmp_path: Path) -> None:
    """What lies beside a SQLite file goes along if it is the registry's key, whatever is told, and else is refused."""
    source, beside = another("sqlite"), tmp_path / "another" / "precall.sqlite3.key"
    async with opened(source, name="tested", now=NOW) as store:
        await settled(store, source, Key.read(KEY))
    beside.write_text("the-key-of-somebody-else")
    refused = await registry("backup", tmp_path / "kept", source, CALLER_HASH_KEY="")
    beside.write_text(KEY)
    made = await registry("backup", tmp_path / "kept", source, CALLER_HASH_KEY="the-key-of-somebody-else")
    check = await registry("check", tmp_path / "kept", source, CALLER_HASH_KEY="")

    says = (
        f"{beside} is not the key by which the registry knows its callers: put that one back, or set"
        " CALLER_HASH_KEY to it"
    )
    assert (2, "", f"precall-registry: {says}\n") == refused
    assert [(0, True), (0, True)] == [
        (status, out.endswith(", with its key\n")) for status, out, _ in (made, check)
    ]


def rewritten(content: bytes, change: Callable[[list[Any]], None]) -> bytes:
    """A back-up with other lines, and the checksum of those."""
    lines = [json.loads(line) for line in content.splitlines()]
    change(lines)
    above = b"".join(json.dumps(line).encode() + b"\n" for line in lines[:-1])
    # In the order and spelling in which it was written.
    above = above.replace(b'{"precall_registry_backup": ', b'{"precall_registry_backup":')
    last = {**lines[-1], "sha256": hashlib.sha256(above).hexdigest()}
    return above + json.dumps(last).replace('{"end": ', '{"end":').encode() + b"\n"


@pytest.fixture
async def kept(registry, another, tmp_path: Path) -> Path:
    """A back-up of a registry with a few calls."""
    source = another("sqlite")
    async with opened(source, name="tested", now=NOW) as store:
        for number in range(5):
            await store.write(begin, number)
    assert 0 == (await registry("backup", tmp_path / "kept", source))[0]
    return tmp_path / "kept"


async def test_file_that_is_no_whole_back_up(registry, kept: Path, tmp_path: Path) -> None:
    """Whatever is not exactly what was written is refused in one line, and no database is made."""
    whole = kept.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    cut, damaged, foreign = "is not whole: its end is missing", "is damaged", "is not a back-up of a registry"
    again = rewritten(whole, lambda _: None)
    cases: list[tuple[bytes, str]] = [
        *((whole[:place], cut) for place in (30, *ends[:-1], ends[-1] - 1, ends[2] + 10)),
        (b"", foreign),
        (b"{}\n", foreign),
        (os.urandom(1_000), foreign),
        ((tmp_path / "another" / "precall.sqlite3").read_bytes(), foreign),
        (whole + b"\n", damaged),
        (whole + whole, damaged),
        (whole.replace(b'"left_3"', b'"left_8"'), damaged),
        (whole.replace(b'"columns":["agent_id"', b'"columns":[7'), damaged),
        (b"".join(whole.splitlines(keepends=True)[:3] + whole.splitlines(keepends=True)[4:]), damaged),
        # With the right checksum, and yet no registry.
        (rewritten(whole, lambda lines: lines.insert(3, lines[3])), damaged),
        (rewritten(whole, lambda lines: lines[1].update(table="agents; DROP TABLE calls")), damaged),
        (rewritten(whole, lambda lines: lines[1]["columns"].append("more")), damaged),
        (rewritten(whole, lambda lines: lines.pop(1)), damaged),
        (rewritten(whole, lambda lines: lines[0].update(revision="9999")), "was made by another release (revision 9999"),
        (rewritten(whole, lambda lines: lines[0].update(precall_registry_backup=2)), "was made by a newer release (form 2"),
        (rewritten(whole, lambda lines: lines[0].pop("key_check")), damaged),
    ]  # fmt: skip
    for content, says in cases:
        kept.write_bytes(content)
        with pytest.raises(BackupInvalid) as caught, reading(str(kept)):
            pass
        assert str(caught.value).startswith(says)
    fresh = f"sqlite:///{tmp_path}/fresh.sqlite3"
    for content, says in (cases[3], cases[-2]):
        status, out, err = await registry("restore", "-", fresh, told=content)
        assert (2, "", 1) == (status, out, len(err.splitlines()))
        assert err.startswith(f"precall-registry: - {says}")
    assert not (tmp_path / "fresh.sqlite3").exists()
    assert 0 == (await registry("restore", "-", fresh, told=again))[0]
    assert 10 == len(await rows(fresh, "SELECT * FROM calls"))


async def test_file_that_is_there(registry, kept: Path, another) -> None:
    """A back-up is never written over anything, be it a link to nowhere."""
    before = kept.read_bytes()
    link = kept.with_name("link")
    link.symlink_to("nowhere")

    for file in (kept, link):
        status, out, err = await registry("backup", file, another("sqlite"))
        assert (1, "", f"precall-registry: {file}: File exists\n") == (status, out, err)
    assert before == kept.read_bytes()


async def test_faulty_telemetry() -> None:
    """A variable of OpenTelemetry that cannot be used is nothing to a command that traces nothing."""
    environ = {"PATH": os.environ["PATH"], "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"}
    async with python("-m", "cloner.backup", "check", str(FIRST), env=environ) as started:
        out, err = await started.communicate()

    assert (0, b"") == (started.returncode, err)
    assert out.startswith(f"{FIRST} is whole".encode())


@pytest.mark.parametrize("place", ["full", "missing/kept"])
async def test_file_that_cannot_be_written(another, tmp_path: Path, place: str) -> None:
    """A back-up that cannot be finished is told in one line, and leaves no file behind."""
    source = another("sqlite")
    async with opened(source, name="tested", now=NOW) as store:
        await asyncio.gather(*(store.write(begin, number) for number in range(500)))
    folder = tmp_path / "folder"
    folder.mkdir()
    # Python would keep what it compiled, cut off at the limit, and be at a loss the next time.
    environ = {
        "PATH": os.environ["PATH"], "DATABASE_URL": source, "CALLER_HASH_KEY": KEY, "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    # No file becomes larger than 64 KiB. Set by a shell: between fork and exec gRPC, where it is at work, crashes.
    command = ("sh", "-c", 'ulimit -f 128; exec "$0" -m cloner.backup backup "$1"', sys.executable)
    done = await asyncio.create_subprocess_exec(
        *command, folder / place, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await done.communicate()

    says = "File too large" if place == "full" else "No such file or directory"
    assert (1, "", f"precall-registry: {folder / place}: {says}\n") == (
        done.returncode,
        out.decode(),
        err.decode(),
    )
    assert [] == list(folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "redirected", "status", "says"),
    [
        ("backup -", ">/dev/full", 1, ["standard output: No space left on device"]),
        ("check first", ">/dev/full", 1, ["standard output: No space left on device"]),
        ("backup kept", ">/dev/full", 0, ["standard output: No space left on device"]),
        ("restore first", ">/dev/full", 0, ["standard output: No space left on device"]),
        ("backup -", ">&-", 1, ["standard output: Bad file descriptor"]),
        ("check -", "<&-", 1, ["standard input: Bad file descriptor"]),
        ("restore first", "2>/dev/full", 0, []),
        ("check kept", "2>/dev/full", 1, []),
        ("nonsense", "2>/dev/full", 2, []),
    ],
)
async def test_stream_that_cannot_be_used(
    another, tmp_path: Path, arguments: str, redirected: str, status: int, says: list[str]
) -> None:
    """The exit status says whether it was done, and a line which stream could not be read or written."""
    database = another("sqlite")
    if arguments.startswith("backup"):
        async with opened(database, name="tested", now=NOW) as store:
            await store.write(begin, 1)
    (tmp_path / "first").symlink_to(FIRST)
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": database, "CALLER_HASH_KEY": KEY_OF_FIRST}
    async with python(
        "-m", "cloner.backup", *arguments.split(), env=environ, cwd=tmp_path, redirected=redirected
    ) as started:
        _, err = await started.communicate()

    told = [f"precall-registry: {line}" for line in says]
    assert (status, told) == (started.returncode, err.decode().splitlines())
    assert (arguments == "backup kept") == (tmp_path / "kept").exists()


async def test_output_that_nobody_reads(tmp_path: Path) -> None:
    """What was done is done, although nobody is told."""
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL": f"sqlite:///{tmp_path}/made", "LOG_LEVEL": "ERROR"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        async with python("-m", "cloner.backup", "migrate", env=environ, stdout=writer) as started:
            _, err = await started.communicate()
    finally:
        os.close(writer)

    assert (0, b"precall-registry: standard output: Broken pipe\n") == (started.returncode, err)


async def test_consents_and_requests_stay(
    registry, cloning, database: str, speech: bytes, emulator: Emulator, tmp_path: Path
) -> None:
    """What was withdrawn since the back-up stays so, and what was asked before it has the same answer."""
    ivan, maria = (pb.Caller(name=name, phone_number="+31612340001") for name in ("Ivan", "Maria"))
    async with cloning(now=a_while_ago) as cloner:
        for caller in (ivan, maria):
            request = pb.CloneVoiceRequest(
                caller=caller, sample=speech, consent="form 17", request_id=caller.name, client_reference="7"
            )
            await cloner.CloneVoice(request, timeout=10)
        made = await registry("backup", tmp_path / "kept", database)
        await cloner.SetConsent(pb.SetConsentRequest(caller=ivan, withdrawn=True), timeout=10)
    restored = await registry("restore", tmp_path / "kept", database, "--replace")
    bought = len(emulator.requests.matching(path=CREATE))
    async with cloning() as cloner:
        again = await cloner.CloneVoice(request, timeout=10)
        told = await cloner.GetVoice(pb.GetVoiceRequest(caller=maria), timeout=10)
        for _ in range(100):
            # ElevenLabs lacks the voice, which is noticed when the registry is compared with it.
            gone = (await cloner.GetVoice(pb.GetVoiceRequest(caller=ivan), timeout=10)).voice
            if gone.state == pb.VOICE_STATE_GONE:
                break
            await asyncio.sleep(0.1)
        with pytest.raises(grpc.aio.AioRpcError, match="withdrawn"):
            await cloner.CloneVoice(pb.CloneVoiceRequest(caller=ivan, sample=speech), timeout=10)

    assert [0, 0] == [made[0], restored[0]]
    assert (bought, again.voice.voice_id) == (
        len(emulator.requests.matching(path=CREATE)), told.voice.voice_id,
    )  # fmt: skip
    assert ("7", ["form 17"]) == (
        told.voice.client_reference, [consent.reference for consent in told.consents],
    )  # fmt: skip


@pytest.mark.long
async def test_registry_that_is_there(registry, kept: Path, database: str) -> None:
    """Where a registry has begun, nothing is restored unless it may be replaced."""
    async with opened(database, name="theirs", now=NOW) as store:
        await store.write(begin, 77)
    refused = await registry("restore", kept, database)
    there = await rows(database, "SELECT name FROM deployment")
    replaced = await registry("restore", kept, database, "--replace")

    assert (
        1,
        "",
        "precall-registry: DATABASE_URL: there is a registry already, which --replace replaces\n",
    ) == refused
    assert ([{"name": "theirs"}], 0) == (there, replaced[0])
    assert [{"name": "tested"}] == await rows(database, "SELECT name FROM deployment")


@pytest.fixture
async def mixture(tmp_path: Path) -> Path:
    """A registry whose file was replaced by an older one while it was open; its log still lies beside the file."""
    folder = tmp_path / "mixture"
    folder.mkdir()
    file, older = folder / "precall.sqlite3", folder / "older"
    async with opened(f"sqlite:///{file}", name="tested", now=NOW) as store:
        await store.write(begin_all, range(5))
    shutil.copy(file, older)
    async with opened(f"sqlite:///{file}", name=None, now=NOW) as store:
        await store.write(begin_all, range(5, 10))
    async with opened(f"sqlite:///{file}", name=None, now=NOW) as store:
        await store.write(
            lambda tx: tx.run(Statement("UPDATE calls SET ended_at = begun_at WHERE id = 'left_0'"))
        )
        older.rename(file)
    assert Path(f"{file}-wal").stat().st_size > 0
    return file


@pytest.mark.parametrize("taken_in", [False, True], ids=["log beside it", "log taken in"])
async def test_file_that_is_broken(registry, completed, kept: Path, mixture: Path, taken_in: bool) -> None:
    """No command works on a file that a foreign log has broken, nor does a cloner; one line says what to do."""
    database = f"sqlite:///{mixture}"
    if taken_in:
        assert [("ok",)] != await values(database, "PRAGMA integrity_check")
        assert not Path(f"{mixture}-wal").exists()
    says = (
        f"DATABASE_URL: {mixture} is a broken SQLite database: move it, and those with -wal and -shm behind its"
        " name, away, and restore a back-up\n"
    )
    refused = (1, "", f"precall-registry: {says}")

    # The first one refused leaves the file as it is to the next.
    assert refused == await registry("restore", kept, database, "--replace")
    assert refused == await registry("backup", kept.with_name("broken"), database)
    assert not kept.with_name("broken").exists()
    if not taken_in:
        environ = {"PATH": os.environ["PATH"], "DATABASE_URL": database}
        assert refused == await completed("cloner.backup", "migrate", environ=environ)
        async with process(
            ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=database, CALLER_HASH_KEY=KEY
        ) as started:
            out, err = await started.communicate()
        assert (1, b"", f"cloner: {says}") == (started.returncode, out, err.decode())
    for suffix in ("", "-wal", "-shm"):
        Path(f"{mixture}{suffix}").unlink(missing_ok=suffix != "")
    assert 0 == (await registry("restore", kept, database))[0]
    assert 10 == len(await rows(database, "SELECT * FROM calls"))


async def test_log_that_a_crash_leaves(registry, tmp_path: Path) -> None:
    """A log that belongs to its file is taken in: by the next cloner, a back-up, or what replaces the registry."""
    whole, log = tmp_path / "whole.sqlite3", tmp_path / "whole.sqlite3-wal"
    async with opened(f"sqlite:///{whole}", name="tested", now=NOW) as store:
        await store.write(begin_all, range(50))
        # As the power may go: what was committed stands in the log alone.
        for name in ("opened", "kept", "replaced"):
            shutil.copy(whole, tmp_path / f"{name}.sqlite3")
            shutil.copy(log, tmp_path / f"{name}.sqlite3-wal")

    async with opened(f"sqlite:///{tmp_path}/opened.sqlite3", name=None, now=NOW) as store:
        assert "tested" == store.name
    made = await registry("backup", tmp_path / "kept", f"sqlite:///{tmp_path}/kept.sqlite3")
    restored = await registry(
        "restore", tmp_path / "kept", f"sqlite:///{tmp_path}/replaced.sqlite3", "--replace"
    )
    assert (0, 0) == (made[0], restored[0])
    for name in ("opened", "kept", "replaced"):
        assert [(100,)] == await values(f"sqlite:///{tmp_path}/{name}.sqlite3", "SELECT count(*) FROM calls")


@pytest.mark.long(first=True)
async def test_cloner_that_is_at_it(registry, kept: Path, cloning, database: str, speech: bytes) -> None:
    """Nothing is restored under a cloner, idle as it may be, and nothing is in its way after it stopped."""
    async with cloning() as cloner:
        await cloner.PrepareCall(call(speech), timeout=10)
        await until_unlocked(database)
        # The first reconciliation may be claimed later than a call is answered.
        await until_none(database, "SELECT 1 FROM deployment WHERE reconciled_until = 0")
        there = await content(database)
        status, out, err = await registry("restore", kept, database, "--replace")
        assert there == await content(database)
        again = await cloner.PrepareCall(call(speech), timeout=10)
    stopped = await registry("restore", kept, database, "--replace")

    assert (1, "", True) == (status, out, err.endswith(": stop every cloner first\n"))
    assert (True, 0) == (again.voice_reused, stopped[0])
    assert [{"name": "tested"}] == await rows(database, "SELECT name FROM deployment")


@pytest.mark.long
async def test_what_was_done_since(
    registry, cloning, database: str, emulator: Emulator, speech: bytes, tmp_path: Path, eventually
) -> None:
    """Set back by --replace: voices made since go, after their agents were put back; no call begins again."""
    before = spoken(emulator)
    async with cloning(now=a_while_ago) as cloner:
        ivan = await cloner.PrepareCall(call(speech), timeout=10)
        await cloner.CompleteCall(end(), timeout=10)
        assert 0 == (await registry("backup", tmp_path / "kept", database))[0]
        await put_back(database)
        over = await cloner.PrepareCall(call(speech, conversation_id="conv_over"), timeout=10)
        await cloner.CompleteCall(pb.CompleteCallRequest(conversation_id="conv_over"), timeout=10)
        await put_back(database)
        maria = await cloner.PrepareCall(call(speech, "Maria", 2), timeout=10)
    assert [True, maria.voice.voice_id] == [over.agent_updated, spoken(emulator)]
    status, out, _ = await registry("restore", tmp_path / "kept", database, "--replace")
    assert (0, "1 voices of the registry that was there are deleted by the next cloner") == (
        status, out.splitlines()[-1],
    )  # fmt: skip

    since = len(list(emulator.requests))
    # Too long ago for reconciling: it is the registry that knows of the voice.
    async with cloning(reconcile_grace_seconds=1e6) as cloner:
        await eventually(lambda: maria.voice.voice_id not in emulator.voices)
        assert before == spoken(emulator)
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_over"), timeout=10)

    did = [
        request.method for request in list(emulator.requests)[since:] if request.method in ("PATCH", "DELETE")
    ]
    assert ["PATCH", "DELETE"] == did
    assert (ivan.voice.voice_id, True, False) == (
        again.voice.voice_id,
        again.voice_reused,
        again.agent_updated,
    )
    assert 2 == len(emulator.requests.matching(path=CREATE))


@pytest.mark.long
@pytest.mark.parametrize("found", ["at once", "after a failure", "late"])
async def test_voice_that_was_being_made(
    registry, cloning, database: str, another, emulator: Emulator, speech: bytes, tmp_path: Path, eventually,
    found: str,
) -> None:  # fmt: skip
    """A voice of which the registry that goes knows the intent alone is looked for, and deleted; it is nobody's."""
    earlier = another(like(database))
    ivan = pb.CloneVoiceRequest(
        caller=pb.Caller(name="Ivan", phone_number="+31612340001"), sample=speech, request_id="1"
    )
    async with cloning(database_url=earlier) as cloner:
        known = await cloner.CloneVoice(ivan, timeout=10)
    assert 0 == (await registry("backup", tmp_path / "kept", earlier))[0]
    ivan.request_id = "2"
    # Another registry, with another name, which ends while ElevenLabs has made the voice and not said so.
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="after"))
    async with cloning(now=a_while_ago, shutdown_grace_seconds=0.0) as cloner:
        asking = asyncio.ensure_future(cloner.CloneVoice(ivan, timeout=10))
        await eventually(lambda: 2 == len(emulator.voices.custom))
    await asyncio.gather(asking, return_exceptions=True)
    emulator.faults.clear()
    assert [("intended", None)] == await values(database, "SELECT state, voice_id FROM voices")
    (orphan,) = (voice for voice in emulator.voices.custom if voice.voice_id != known.voice.voice_id)
    status, out, _ = await registry("restore", tmp_path / "kept", database, "--replace")
    assert (0, "1 that were being made are looked for, and deleted where ElevenLabs has made them") == (
        status, out.splitlines()[-1],
    )  # fmt: skip

    if found == "after a failure":
        emulator.faults.set(Fault(method="GET", path="/v2/voices", error="internal_error"))
    elif found == "late":
        emulator.voices.remove(orphan.voice_id)
    async with cloning(provider_attempts=1) as cloner:
        while found != "at once" and not await rows(database, "SELECT 1 FROM voices WHERE tries > 0"):
            await asyncio.sleep(0.05)
        again = await cloner.CloneVoice(ivan, timeout=10)
        listed = await cloner.ListVoices(pb.ListVoicesRequest(states=pb.VoiceState.values()[1:]), timeout=10)
        emulator.faults.clear()
        if found == "late":
            emulator.voices.put(orphan)
        while await rows(database, "SELECT 1 FROM voices WHERE state = 'deleting'"):
            await asyncio.sleep(0.05)

    assert [known.voice.voice_id] == [voice.voice_id for voice in emulator.voices.custom]
    assert [known.voice.voice_id] == [voice.voice_id for voice in listed.voices]
    assert (True, known.voice.voice_id) == (again.voice_reused, again.voice.voice_id)


async def test_registry_that_was_lost(
    registry, cloning, database: str, another, emulator: Emulator, speech: bytes, tmp_path: Path, eventually
) -> None:
    """Voices made after the back-up go; one deleted since is missed at once, and cloned again for its caller."""
    async with cloning(reconcile_seconds=0.2) as cloner:
        ivan = await cloner.PrepareCall(call(speech), timeout=10)
        anna = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=pb.Caller(name="Anna", phone_number="+31612340009"), sample=speech)
        )
        await cloner.CompleteCall(end(), timeout=10)
        assert 0 == (await registry("backup", tmp_path / "kept", database))[0]
        later = await cloner.CloneVoice(
            pb.CloneVoiceRequest(caller=pb.Caller(name="Later", phone_number="+31612340008"), sample=speech)
        )
    emulator.voices.remove(ivan.voice.voice_id)
    target = another(like(database))
    assert 0 == (await registry("restore", tmp_path / "kept", target))[0]

    # Before anything is reconciled, so that the delivery itself has to find out.
    emulator.faults.set(Fault(method="GET", path="/v2/voices", error="internal_error"))
    async with cloning(
        database_url=target, reconcile_seconds=0.2, reconcile_grace_seconds=0.0, provider_attempts=1
    ) as cloner:
        again = await cloner.PrepareCall(call(speech, conversation_id="conv_2"), timeout=10)
        emulator.faults.clear()
        await eventually(lambda: later.voice.voice_id not in emulator.voices)

    assert (False, True) == (again.voice_reused, again.voice.voice_id in emulator.voices)
    assert anna.voice.voice_id in emulator.voices


async def test_database_of_another_release(registry, database: str, kept: Path, tmp_path: Path) -> None:
    """A revision that this release does not know is touched by none of ours: one line, exit status 2."""
    async with opened(database, name="theirs", now=NOW) as store:
        await store.write(lambda tx: tx.run(Statement("UPDATE alembic_version SET version_num = '9999'")))
    says = (
        f"DATABASE_URL: the database was made by another release (revision 9999, and this one knows {LATEST}):"
        " run that release, or restore a back-up\n"
    )

    assert (2, "", f"precall-registry: {says}") == await registry("backup", tmp_path / "newer", database)
    assert (2, "", f"precall-registry: {says}") == await registry("restore", kept, database, "--replace")
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=database, CALLER_HASH_KEY=KEY
    ) as started:
        out, err = await started.communicate()
    assert (2, b"", f"cloner: {says}") == (started.returncode, out, err.decode())
    assert [("theirs",)] == await values(database, "SELECT name FROM deployment")
    assert not (tmp_path / "newer").exists()


async def test_migration_is_told(empty_database: str) -> None:
    """The start that makes the tables says so, once, and the next one has nothing to say."""
    told = []
    for _ in range(2):
        async with process(
            ELEVENLABS_API_KEY="k", CLONER_PORT="0", DATABASE_URL=empty_database, CALLER_HASH_KEY=KEY
        ) as started:
            told.append([line for line in await until_ready(started) if "registry migrated" in line])

    ((line,), nothing) = told
    assert " level=info " in line
    assert line.endswith(f"before=empty after={LATEST}")
    assert [] == nothing


@pytest.mark.parametrize(
    ("environ", "status", "says"),
    [
        ({"DATABASE_URL": "mysql://db"}, 2, "DATABASE_URL: expected sqlite:///file or postgresql://"),
        ({"CALLER_HASH_KEY": "short"}, 2, "CALLER_HASH_KEY must be at least 16 characters"),
        ({"DATABASE_URL": "x", "LOG_LEVEL": "loud"}, 2, "LOG_LEVEL must be one of: DEBUG, "),
        (
            {"DATABASE_URL": "sqlite:////nowhere/precall.sqlite3"},
            1,
            "/nowhere/precall.sqlite3 does not exist",
        ),
        ({"DATABASE_URL": "sqlite:////tmp"}, 1, "/tmp is not a file"),
        ({"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 1, "nothing listens at the host and port"),
    ],
)
async def test_settings(registry, environ: dict[str, str], status: int, says: str, tmp_path: Path) -> None:
    """What is wrong with the settings is one line, and makes no file."""
    database = environ.pop("DATABASE_URL", f"sqlite:///{tmp_path}/precall.sqlite3")
    found, out, err = await registry("backup", tmp_path / "kept", database, **environ)

    assert (status, "", 1) == (found, out, len(err.splitlines()))
    assert says in err
    assert [] == list(tmp_path.iterdir())


async def test_database_without_a_registry(registry, database: str, tmp_path: Path) -> None:
    """Of nothing there is no back-up."""
    if like(database) == "sqlite":
        (tmp_path / "precall.sqlite3").touch()

    assert (1, "", "precall-registry: DATABASE_URL: the database holds no registry\n") == await registry(
        "backup", tmp_path / "kept", database
    )


async def test_keys_are_not_told(registry, another, tmp_path: Path) -> None:
    """A key shows itself in no message, and a published one works as it does for the cloner."""
    source = another("sqlite")
    async with opened(source, name="tested", now=NOW):
        pass
    secret = "a-secret-that-nobody-sees"
    made = await registry("backup", tmp_path / "kept", source, CALLER_HASH_KEY=secret)
    refused = await registry("restore", tmp_path / "kept", source, CALLER_HASH_KEY=f"{secret}-2")

    assert [0, 2] == [made[0], refused[0]]
    assert secret not in "".join((*made[1:], *refused[1:], (tmp_path / "kept").read_text()))


async def test_back_up_of_the_first_release(registry, empty_database: str) -> None:
    """What release after release wrote is taken: the file is as revision 0005 had it."""
    restored = await registry("restore", FIRST, empty_database, CALLER_HASH_KEY=KEY_OF_FIRST)

    assert (0, "") == (restored[0], restored[2])
    # The key is the one that the first line of the file tells.
    assert [("1a2b3c4d", 1767000000.25, "f277a87cf93675257c7a734a9498cff3")] == await values(
        empty_database, "SELECT name, created_at, key_check FROM deployment"
    )
    assert [("call_1", "conv_1", True)] == [
        (*row[:2], bool(row[2]))
        for row in await values(empty_database, "SELECT id, conversation_id, confirmed FROM calls")
    ]
    assert [("voice_1", "ready", "Zoë", "form 17", 1767321000.0)] == await values(
        empty_database, "SELECT voice_id, state, greeting_name, consent, consent_at FROM voices"
    )
    assert [("customer 7", "request_1", "form 17")] == await values(
        empty_database, "SELECT client_reference, key, reference FROM voices, requests, consents"
    )
    assert [("agent_1", "voice_0", 3)] == await values(
        empty_database, "SELECT agent_id, before_voice_id, changes FROM agents"
    )


async def test_back_up_before_an_upgrade(registry, empty_database: str, another, tmp_path: Path) -> None:
    """The next release keeps the registry of this one, and restores it as one of its own."""
    fresh, kept = another(like(empty_database)), tmp_path / "kept"
    assert 0 == (await registry("restore", FIRST, empty_database, CALLER_HASH_KEY=KEY_OF_FIRST))[0]

    for database, *arguments in (
        (empty_database, "backup", str(kept)),
        (fresh, "restore", str(kept)),
        (empty_database, "restore", "--replace", str(kept)),
    ):
        status, _, err = await of_next_release(
            tmp_path / "next", *arguments, DATABASE_URL=database, CALLER_HASH_KEY=KEY_OF_FIRST
        )
        assert (0, "") == (status, err)

    assert LATEST == json.loads(kept.read_text().splitlines()[0])["revision"]
    for database in (fresh, empty_database):
        assert [("1a2b3c4d", "call_1", "call call_1", "voice_1")] == await values(
            database, "SELECT deployment.name, calls.id, told_as, voice_id FROM deployment, calls, voices"
        )
