import asyncio
import csv
import os
import pty
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb

from cli.enrolment.listing import FileInvalid, read_callers
from cli.enrolment.report import Entry, Report
from emulator import Emulator, Fault
from environment import Secret
from tests.kit.python import python

TOKEN = "token-of-the-cloner"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
CREATE = "/v1/voices/add"
COLUMNS = ["file", "phone_number", "name", "date_of_birth", "consent"]
ADA = ["ada.mp3", "+31612345601", "Ada", "1815-12-10", "form 17"]
BEN = ["ben.mp3", "+31612345602", "Ben", "1706-01-17", "form 18"]
CLEO = ["cleo.mp3", "+31612345603", "Cleo", "", ""]


@pytest.fixture
async def cloner(cloning):
    """A cloner that wants its token."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as stub:
        yield stub


@pytest.fixture
def folder(tmp_path, speech: bytes, silence: Callable[..., bytes]) -> Path:
    """Recordings, three of them good."""
    made = tmp_path / "recordings"
    made.mkdir()
    for name in ("ada.mp3", "ben.mp3", "cleo.mp3"):
        # What follows the last frame makes each file another one.
        (made / name).write_bytes(speech + name.encode())
    (made / "short.wav").write_bytes(silence(1))
    (made / "empty.wav").touch()
    return made


@pytest.fixture
def callers(tmp_path) -> Callable[..., Path]:
    """Writes the CSV of callers."""

    def write(*rows: list[str], delimiter: str = ",") -> Path:
        path = tmp_path / "callers.csv"
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows([COLUMNS, *rows])
        return path

    return write


def environment(port: int) -> dict[str, str]:
    """What the command sees of a cloner."""
    return {"PATH": os.environ["PATH"], "CLONER_TARGET": f"127.0.0.1:{port}", "CLONER_TOKEN": TOKEN}


@pytest.fixture
def enrol(completed) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Exit status and output of the command."""

    async def run(port: int, *arguments: object, folder: Path | None = None) -> tuple[int, str, str]:
        told = map(str, arguments)
        return await completed("cli", "enrol", *told, environ=environment(port), folder=folder)

    return run


@asynccontextmanager
async def running(port: int, *arguments: object, **streams: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """The command under way; killed if it is when the block ends."""
    told = map(str, arguments)
    async with python("-m", "cli", "enrol", *told, env=environment(port), **streams) as command:
        yield command


def reported(callers: Path) -> list[dict[str, str]]:
    """The lines of the report."""
    with Path(f"{callers}.report.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def creates(emulator: Emulator) -> int:
    """How often a voice was asked for."""
    return len(emulator.requests.matching(path=CREATE))


async def consents(cloner) -> list[str]:
    """The consents of all voices."""
    voices = (await cloner.ListVoices(pb.ListVoicesRequest(), metadata=METADATA)).voices
    return sorted(voice.consent for voice in voices)


async def test_enrolled(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Makes a voice of each recording, and keeps the consent with it."""
    status, out, _ = await enrol(cloner.port, folder, callers(ADA, BEN, CLEO, delimiter=";"))

    assert (0, "3 enrolled, 0 known, 0 refused, 0 left\n") == (status, out)
    assert ["Ada", "Ben", "Cleo"] == sorted(voice.name.split("_")[0] for voice in emulator.voices.custom)
    assert ["", "form 17", "form 18"] == await consents(cloner)


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", "<&- >&- 2>&-"])
async def test_streams_that_cannot_be_written(cloner, folder: Path, callers, streams: str) -> None:
    """Enrols everybody, and says so by its exit status, where nothing else can be said."""
    path = callers(ADA, BEN)
    async with running(cloner.port, folder, path, redirected=streams) as command:
        await command.communicate()

    assert 0 == command.returncode
    assert ["enrolled"] * 2 == [line["outcome"] for line in reported(path)]


async def test_name_of_a_file(enrol, cloner, folder: Path, callers) -> None:
    """Finds a file by its name, whether "é" is one character or two."""
    (folder / "ada.mp3").rename(folder / "zo\u00e9.mp3")
    (folder / "ben.mp3").rename(folder / "re\u0301my.mp3")
    path = callers(["zoe\u0301.mp3", *ADA[1:]], ["r\u00e9my.mp3", *BEN[1:]])

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (0, "2 enrolled, 0 known, 0 refused, 0 left\n") == (status, out)


async def test_report(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Says of each line what became of it, to the owner of the report alone."""
    path = callers(ADA, ["short.wav", "+31612345604", "", "", ""])

    await enrol(cloner.port, folder, path, "--at-once", 1)

    (voice,) = emulator.voices.custom
    good, short = reported(path)
    assert {
        "line": "2",
        "file": "ada.mp3",
        "digest": good["digest"],
        "outcome": "enrolled",
        "voice_id": voice.voice_id,
        "reason": "",
        "message": "",
    } == good
    assert ("3", "short.wav", "refused", "", "SAMPLE_TOO_SHORT") == tuple(
        short[column] for column in ("line", "file", "outcome", "voice_id", "reason")
    )
    assert "Voice sample too short: 1.0 s, at least 3.0 s needed" == short["message"]
    assert (16, 16) == (len(good["digest"]), len(short["digest"]))
    assert 0o600 == stat.S_IMODE(Path(f"{path}.report.csv").stat().st_mode)


async def test_report_elsewhere(enrol, cloner, tmp_path, folder: Path, callers) -> None:
    """Writes the report where it is told to."""
    path = callers(ADA)

    await enrol(cloner.port, folder, path, "--report", tmp_path / "done.csv")

    assert (2, False) == (
        len((tmp_path / "done.csv").read_text().splitlines()),
        Path(f"{path}.report.csv").exists(),
    )


async def test_known(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Says of a caller who has a voice that nothing was cloned."""
    caller = pb.Caller(phone_number=ADA[1], name=ADA[2], date_of_birth=ADA[3])
    request = pb.CloneVoiceRequest(caller=caller, sample=(folder / "ben.mp3").read_bytes())
    voice = (await cloner.CloneVoice(request, metadata=METADATA)).voice
    path = callers(ADA)

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (0, "0 enrolled, 1 known, 0 refused, 0 left\n", 1) == (status, out, creates(emulator))
    assert [("known", voice.voice_id)] == [(row["outcome"], row["voice_id"]) for row in reported(path)]


@pytest.mark.parametrize(
    ("row", "file", "reason", "message"),
    [
        (["gone.mp3", "+31612345604", "", "", ""], "gone.mp3", "FILE_UNREADABLE", "there is no such file in the folder"),
        (["empty.wav", "+31612345604", "", "", ""], "empty.wav", "FILE_UNREADABLE", "the file is empty"),
        ([".", "+31612345604", "", "", ""], ".", "FILE_UNREADABLE", "this is not a file"),
        (["a" * 300, "+31612345604", "", "", ""], "a" * 300, "FILE_UNREADABLE", "the file cannot be read (File name too long)"),
        (["huge.wav", "+31612345604", "", "", ""], "huge.wav", "SAMPLE_TOO_LARGE", "the file is larger than 256 MiB"),
        (["large.wav", "+31612345604", "", "", ""], "large.wav", "SAMPLE_TOO_LARGE", "The cloner takes no recording of this size."),
        (["../callers.csv", "+31612345604", "", "", ""], "../callers.csv", "FIELD_INVALID", "file must stay inside the folder"),
        (["link.mp3", "+31612345604", "", "", ""], "link.mp3", "FIELD_INVALID", "file must stay inside the folder"),
        (["/etc/hostname", "+31612345604", "", "", ""], "/etc/hostname", "FIELD_INVALID", "file must stay inside the folder"),
        (["ben\x1b[2J.mp3", "+31612345604", "", "", ""], "ben?[2J.mp3", "FIELD_INVALID", "file may hold printable characters only"),
        (["", "+31612345604", "", "", ""], "", "FIELD_INVALID", "file is empty"),
        (["ben.mp3", "", "Ben", "", ""], "ben.mp3", "FIELD_INVALID", "phone_number is empty"),
        (["ben.mp3", "n/a", "Ben", "", ""], "ben.mp3", "FIELD_INVALID", "phone_number is not a phone number: write it with its country, as +31612345678, or set DEFAULT_REGION"),
        (["ben.mp3", "06 12345604", "Ben", "", ""], "ben.mp3", "FIELD_INVALID", "phone_number is not a phone number: write it with its country, as +31612345678, or set DEFAULT_REGION"),
        (["ben.mp3", "sip:+31612345601@host", "ADA", "1815-12-10", ""], "ben.mp3", "FIELD_INVALID", "the caller is the same as on line 2"),
        (["ben.mp3", "+31612345604", "B, Ben", "", "", ""], "", "FIELD_INVALID", "the line has 6 columns and the header 5: quote texts that hold a delimiter"),
        (["ben.mp3", "+31 6 12345601", " ada ", "1815-12-10", ""], "ben.mp3", "FIELD_INVALID", "the caller is the same as on line 2"),
        (["ben.mp3", "+31612345604", "B" * 201, "", ""], "ben.mp3", "FIELD_INVALID", "caller.name may hold at most 200 characters"),
    ],
)  # fmt: skip
async def test_row_refused(
    enrol, cloner, folder: Path, callers, row: list[str], file: str, reason: str, message: str
) -> None:
    """A line at fault is refused and says why; the others go on."""
    (folder / "link.mp3").symlink_to(callers())
    for name, size in (("huge.wav", (256 << 20) + 1), ("large.wav", 17 << 20)):
        (folder / name).touch()
        os.truncate(folder / name, size)
    path = callers(ADA, row, CLEO)

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (1, "2 enrolled, 0 known, 1 refused, 0 left") == (status, out.splitlines()[-1])
    assert [f"line 3  {file}  {reason}  {message}"] == out.splitlines()[:-1]
    assert [("3", file, reason, message)] == [
        (row["line"], row["file"], row["reason"], row["message"])
        for row in reported(path)
        if row["outcome"] == "refused"
    ]


async def test_same_file(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Two lines may use one file."""
    status, _, _ = await enrol(cloner.port, folder, callers(ADA, ["ada.mp3", *BEN[1:]]))

    assert (0, 2) == (status, len(emulator.voices.custom))


async def test_again(enrol, cloner, emulator: Emulator, spans, folder: Path, callers) -> None:
    """Running it again sends what was refused, and nothing of what was enrolled."""
    path = callers(ADA, ["short.wav", *BEN[1:]], CLEO)
    await enrol(cloner.port, folder, path)
    sent = len(spans.finished("precall.v1.CloningService/CloneVoice"))
    (folder / "short.wav").write_bytes((folder / "ben.mp3").read_bytes())

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (0, "3 enrolled, 0 known, 0 refused, 0 left\n", 3) == (status, out, creates(emulator))
    assert (3, 4) == (sent, len(spans.finished("precall.v1.CloningService/CloneVoice")))
    assert ["2", "3", "3", "4"] == sorted(row["line"] for row in reported(path))


async def test_another_recording(enrol, cloner, spans, folder: Path, callers) -> None:
    """Sends a line again whose file holds another recording than the one that was enrolled."""
    path = callers(ADA)
    await enrol(cloner.port, folder, path)
    (folder / "ada.mp3").write_bytes((folder / "ben.mp3").read_bytes())

    assert "0 enrolled, 1 known, 0 refused, 0 left\n" == (await enrol(cloner.port, folder, path))[1]
    assert 2 == len(spans.finished("precall.v1.CloningService/CloneVoice"))


async def test_killed(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Nobody gets a second voice when a run that was killed is run again."""
    path = callers(ADA, BEN, CLEO)
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before"))
    async with running(cloner.port, folder, path, "--at-once", 1) as process:
        await emulator.requests.wait(path=CREATE, stage="held", seconds=20)
        process.kill()
        await process.communicate()
    emulator.faults.clear()

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (0, ["0 refused", "0 left\n"]) == (status, out.split(", ")[2:])
    assert (3, 3) == (creates(emulator), len(emulator.voices.custom))


async def test_interrupted(cloner, emulator: Emulator, folder: Path, callers) -> None:
    """SIGINT begins nothing more, and what is under way is finished and reported."""
    path = callers(ADA, BEN, CLEO)
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", times=None))
    async with running(cloner.port, folder, path, "--at-once", 2) as process:
        await emulator.requests.wait(2, path=CREATE, stage="held", seconds=20)
        process.send_signal(signal.SIGINT)
        said = await process.stderr.readline()
        begun = creates(emulator)
        emulator.faults.clear()
        out, err = await process.communicate()

    assert (2, b"finishing what is under way; interrupt once more to give it up\n") == (begun, said)
    assert (130, b"2 enrolled, 0 known, 0 refused, 1 left\n") == (process.returncode, out)
    assert b"precall: stopped: Interrupted. Run it again to go on from there." == err.splitlines()[-1]
    assert {"ada.mp3", "ben.mp3"} == {row["file"] for row in reported(path)}


async def test_interrupted_twice(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """A second SIGINT gives up what is under way, and the next run finds it."""
    path = callers(ADA, BEN)
    emulator.faults.set(Fault(method="POST", path=CREATE, hold="before", times=None))
    async with running(cloner.port, folder, path, "--at-once", 1) as process:
        await emulator.requests.wait(path=CREATE, stage="held", seconds=20)
        process.send_signal(signal.SIGINT)
        await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, _ = await process.communicate()
    emulator.faults.clear()

    assert (130, b"0 enrolled, 0 known, 0 refused, 2 left\n") == (process.returncode, out)
    assert [] == reported(path)
    assert 0 == (await enrol(cloner.port, folder, path))[0]
    assert 2 == creates(emulator)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("voice_limit_reached", "VOICE_SLOTS_EXHAUSTED"),
        ("voice_add_edit_limit_reached", "VOICE_MONTHLY_LIMIT"),
        ("can_not_use_instant_voice_cloning", "PROVIDER_PLAN_LIMIT"),
        ("invalid_api_key", "PROVIDER_UNAUTHORIZED"),
    ],
)
async def test_stops(
    enrol, cloner, emulator: Emulator, folder: Path, callers, error: str, reason: str
) -> None:
    """What every further line would meet as well ends the run, and says why."""
    path = callers(ADA, BEN, CLEO)
    emulator.faults.set(Fault(method="POST", path=CREATE, error=error, times=None))

    status, out, err = await enrol(cloner.port, folder, path, "--at-once", 1)

    assert (1, "0 enrolled, 0 known, 1 refused, 2 left") == (status, out.splitlines()[-1])
    assert [reason] == [row["reason"] for row in reported(path)]
    stopped = f"precall: stopped: {reported(path)[0]['message']} Run it again to go on from there."
    assert stopped == err.splitlines()[-1]


async def test_slots(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """Nobody who is enrolled loses a voice when the slots are full; with more of them the run goes on."""
    path = callers(ADA, BEN, CLEO)
    emulator.voices.limit = 2
    full = await enrol(cloner.port, folder, path, "--at-once", 1)
    emulator.voices.limit = 3

    status, out, _ = await enrol(cloner.port, folder, path)

    assert (1, "2 enrolled, 0 known, 1 refused, 0 left") == (full[0], full[1].splitlines()[-1])
    assert (0, "3 enrolled, 0 known, 0 refused, 0 left\n") == (status, out)
    assert "VOICE_SLOTS_EXHAUSTED" in full[1]
    assert 3 == len(emulator.voices.custom)


async def test_others_go_on(enrol, cloner, emulator: Emulator, folder: Path, callers) -> None:
    """What one line alone meets ends that line alone."""
    emulator.faults.set(Fault(method="POST", path=CREATE, error="invalid_content"))

    status, out, _ = await enrol(cloner.port, folder, callers(ADA, BEN), "--at-once", 1)

    assert (1, "1 enrolled, 0 known, 1 refused, 0 left") == (status, out.splitlines()[-1])


async def test_out_of_reach(enrol, folder: Path, callers, unused_tcp_port: int) -> None:
    """Without a cloner the run ends at the first line."""
    path = callers(ADA, BEN)

    status, out, err = await enrol(unused_tcp_port, folder, path, "--at-once", 1)

    assert (1, "0 enrolled, 0 known, 1 refused, 1 left") == (status, out.splitlines()[-1])
    assert ["CLONER_UNAVAILABLE"] == [row["reason"] for row in reported(path)]
    assert "The cloner cannot be reached" in err


async def test_token(enrol, cloning, folder: Path, callers) -> None:
    """A token that is refused ends the run."""
    path = callers(ADA, BEN)
    async with cloning(cloner_token=(Secret("another-token-of-it"),)) as cloner:
        status, _, _ = await enrol(cloner.port, folder, path, "--at-once", 1)

    assert (1, ["UNAUTHENTICATED"]) == (status, [row["reason"] for row in reported(path)])


async def test_consent_required(enrol, cloning, emulator: Emulator, folder: Path, callers) -> None:
    """Refuses a line without a consent where the cloner requires one."""
    path = callers(ADA, CLEO)
    async with cloning(cloner_token=(Secret(TOKEN),), require_consent=True) as cloner:
        status, out, _ = await enrol(cloner.port, folder, path)
        kept = await consents(cloner)

    assert (1, "1 enrolled, 0 known, 1 refused, 0 left") == (status, out.splitlines()[-1])
    assert [("3", "CONSENT_MISSING")] == [
        (row["line"], row["reason"]) for row in reported(path) if row["outcome"] == "refused"
    ]
    assert (["form 17"], 1) == (kept, creates(emulator))


async def test_private(enrol, cloner, folder: Path, callers) -> None:
    """Shows and reports nothing of a caller, and sends no control characters into a pipe."""
    path = callers(ADA, ["short.wav", *BEN[1:]], ["ben.mp3", *ADA[1:]], ["cleo.mp3", "", *CLEO[2:]])

    _, out, err = await enrol(cloner.port, folder, path)

    told = out + err + Path(f"{path}.report.csv").read_text()
    assert [] == [text for text in (*ADA[1:], *BEN[1:], CLEO[2]) if text in told]
    assert [] == [c for c in told if not c.isprintable() and c != "\n"]
    assert 4 == len(err.splitlines())


async def test_terminal(cloner, folder: Path, callers) -> None:
    """Draws a bar on a terminal."""
    ours, theirs = pty.openpty()
    try:
        async with running(cloner.port, folder, callers(ADA), stderr=theirs) as process:
            out, _ = await process.communicate()
        drawn = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)

    assert b"1 enrolled, 0 known, 0 refused, 0 left\n" == out
    assert (True, False) == (b"\x1b[" in drawn, b"ada.mp3" in drawn)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "line 1: a column file is missing; this line names the columns"),
        (b"file,name\nada.mp3,Ada\n", "line 1: a column phone_number is missing; this line names the columns"),
        (b"ada.mp3,+31612345601\n", "line 1: column 1 must be named one of file, phone_number, name, date_of_birth, consent, or go; between columns stands , or ; or a tab"),
        (b"\n\nfile,phone_number,e-mail\n", "line 3: column 3 must be named one of file, phone_number, name, date_of_birth, consent, or go; between columns stands , or ; or a tab"),
        (b"sep=;\r\nada.mp3;1\r\n", "line 2: column 1 must be named one of file, phone_number, name, date_of_birth, consent, or go; between columns stands , or ; or a tab"),
        (b"sep=;\r\n", "line 1: a column file is missing; this line names the columns"),
        (b"file,phone_number,file\n", "line 1: column 3 is file once more; one of them must go"),
        (b"file,phone_number\n\n,\n", ": there is no caller below the header line"),
        (b"file,phone_number\nada.mp3,1\nb\xe9.mp3,1\n", "line 3: save the file as CSV in UTF-8, which this is not"),
        ("file,phone_number\n".encode("utf-16"), "line 1: save the file as CSV in UTF-8, which this is not"),
        (b'file,phone_number\nada.mp3,1\n"ben.mp3,2\n', "line 3: a quotation mark is not closed, or not doubled"),
        (b'file,phone_number\n"ada"x.mp3,1\n', "line 2: a quotation mark is not closed, or not doubled"),
    ],
)  # fmt: skip
def test_malformed(tmp_path, content: bytes, says: str) -> None:
    """A CSV that will not do says on which line, and what to change, and nothing of what it holds."""
    path = tmp_path / "callers.csv"
    path.write_bytes(content)

    with pytest.raises(FileInvalid) as raised:
        read_callers(path)

    assert str(raised.value).startswith(str(path))
    assert str(raised.value).endswith(says)


@pytest.mark.parametrize(
    "content",
    [
        "file,phone_number,name\nada.mp3,+31612345601,Ada\n",
        "\ufefffile;phone_number;name\r\nada.mp3;+31612345601;Ada\r\n",
        ' name , file,phone_number\n\n"Ada"," ada.mp3 ",+31612345601\n,,\n',
        "file;phone_number;name\rada.mp3;+31612345601;Ada",
        "file\tphone_number\tname\nada.mp3\t+31612345601\tAda\n",
        "File,\tPhone_Number,\tNAME\nada.mp3,\t+31612345601,\tAda\n",
        "\ufeffsep=;\r\nfile;phone_number;name\r\nada.mp3;+31612345601;Ada\r\n",
        '"SEP=,"\nfile,phone_number,name\nada.mp3,+31612345601,Ada\n',
        "\nsep=\t\n\nfile\tphone_number\tname\nada.mp3\t+31612345601\tAda\n",
    ],
)
def test_forms(tmp_path, content: str) -> None:
    """Takes a CSV as spreadsheets write it."""
    path = tmp_path / "callers.csv"
    path.write_bytes(content.encode())

    (row,) = read_callers(path)

    assert ("ada.mp3", "+31612345601", "Ada", "") == (row.file, row.phone_number, row.name, row.fault)


def test_number(tmp_path) -> None:
    """A number is read once, here, in the country that is set."""
    path = tmp_path / "callers.csv"
    path.write_text(
        "file,phone_number\na.mp3,06 12345601\nb.mp3,tel:+31612345602\nc.mp3,0031612345601\nd.mp3,anonymous\n"
    )

    assert [
        ("+31612345601", ""),
        ("+31612345602", ""),
        ("+31612345601", "the caller is the same as on line 2"),
        ("anonymous", "phone_number is not a phone number: write it with its country, as +31612345678"),
    ] == [(row.phone_number, row.fault) for row in read_callers(path, "NL")]


def test_line(tmp_path) -> None:
    """A line is where a caller begins, whatever lines a text before it takes."""
    path = tmp_path / "callers.csv"
    path.write_text('file,phone_number,name\na.mp3,1,"A\nB"\n\nc.mp3,2,C\n')

    assert [2, 5] == [row.line for row in read_callers(path)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nowhere", "callers.csv"), "nowhere is not a folder"),
        (("recordings", "nowhere.csv"), "nowhere.csv cannot be read (No such file or directory)"),
        (("recordings", "bad.csv"), "bad.csv, line 1: a column file is missing; this line names the columns"),
        (("recordings", "callers.csv", "--report", "callers.csv"), "callers.csv is no report of this command; name another with --report"),
        (("recordings", "callers.csv", "--report", "no/report.csv"), "no/report.csv cannot be written (No such file or directory)"),
        (("recordings", "callers.csv", "--at-once", "21"), "argument --at-once: invalid choice: "),
        (("recordings", "callers.csv", "--at-once", "0"), "argument --at-once: invalid choice: "),
    ],
)  # fmt: skip
async def test_wrong_call(
    enrol, cloner, emulator: Emulator, folder: Path, callers, arguments: tuple[str, ...], says: str
) -> None:
    """What cannot be begun ends with status 2, and neither is anything sent nor a file changed."""
    content = callers(ADA).read_bytes()
    (folder.parent / "bad.csv").touch()

    status, out, err = await enrol(cloner.port, *arguments, folder=folder.parent)

    assert (2, "", 0) == (status, out, creates(emulator))
    assert says in err
    assert content == (folder.parent / "callers.csv").read_bytes()


ENTRY = Entry(line=2, file="ada.mp3", digest="0123456789abcdef", outcome="enrolled", voice_id="v1")
LINE = "2,ada.mp3,0123456789abcdef,enrolled,v1,,\n"
HEADER = "line,file,digest,outcome,voice_id,reason,message\n"


@pytest.mark.parametrize("cut", ["", "li", HEADER[:-1], HEADER, HEADER + "2,ada.m", HEADER + LINE[:-1]])
def test_cut_off(tmp_path, cut: str) -> None:
    """A line that a kill has cut off counts as not written."""
    path = tmp_path / "report.csv"
    path.write_text(cut)

    with Report(path) as report:
        done = report.done(2, "ada.mp3", "0123456789abcdef")
        report.add(ENTRY)

    assert (None, HEADER + LINE) == (done, path.read_text())


def test_taken_up(tmp_path) -> None:
    """What was written is known to the next run, for that line, file and recording alone."""
    with Report(tmp_path / "report.csv") as report:
        report.add(ENTRY)

    with Report(tmp_path / "report.csv") as report:
        assert ENTRY == report.done(2, "ada.mp3", "0123456789abcdef")
        assert None is report.done(3, "ada.mp3", "0123456789abcdef")
        assert None is report.done(2, "ben.mp3", "0123456789abcdef")
        assert None is report.done(2, "ada.mp3", "1123456789abcdef")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("line,file\n", "is no report of this command"),
        ("Ada", "is no report of this command"),
        (HEADER + "2,ada.mp3\n", "is damaged"),
        (HEADER + "two,ada.mp3,0123456789abcdef,enrolled,v1,,\n", "is damaged"),
        (HEADER + "2,ada.mp3,0123456789abcdef,lost,v1,,\n", "is damaged"),
    ],
)
def test_no_report(tmp_path, content: str, says: str) -> None:
    """A file that is something else is left as it is."""
    path = tmp_path / "report.csv"
    path.write_text(content)

    with pytest.raises(FileInvalid, match=says), Report(path):
        pass

    assert content == path.read_text()


def test_two_runs(tmp_path) -> None:
    """Two runs do not write one report at once."""
    path = tmp_path / "report.csv"

    with Report(path), pytest.raises(FileInvalid, match="is being written by another run"), Report(path):
        pass


async def test_disk_full(cloner, folder: Path, callers) -> None:
    """A report that cannot be written ends the run, and holds whole lines only."""
    path = callers(*([f"gone{n}.mp3", f"+3161234{n:04}", "", "", ""] for n in range(100)), ADA)

    process = await asyncio.create_subprocess_exec(
        "bash", "-c", 'ulimit -f 1; exec "$@"', "bash",
        sys.executable, "-m", "cli", "enrol", str(folder), str(path),
        # Python would keep what it compiled, cut off at the limit, and be at a loss the next time.
        env=environment(cloner.port) | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()

    assert (1, True) == (process.returncode, b"The report cannot be written (File too large)." in err)
    assert {"FILE_UNREADABLE"} == {row["reason"] for row in reported(path)}
    assert Path(f"{path}.report.csv").read_bytes().endswith(b"in the folder\n")
