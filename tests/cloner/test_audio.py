"""What the bytes of a sample are, and what hostile bytes can do to the workers that find out."""

import asyncio
import contextlib
import io
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from structlog.testing import capture_logs
from structlog.typing import EventDict

from cloner.audio import worker
from cloner.audio.inspector import InspectionUnavailable, Inspector, SampleUnreadable
from cloner.audio.reply import Finding, Format
from tests.cloner.recordings import SPEECH, encoded, patched, recording

pytestmark = pytest.mark.asyncio(loop_scope="module")

# An hour and a half of joined OGG files, which takes any machine many seconds of processor time.
ENDLESS = SPEECH["opus"] * 1000
MAX_SECONDS = 60.0
HALF_A_SECOND = (np.sin(np.arange(22_050) / 16) * 2**14).astype("<i2")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def inspector() -> AsyncIterator[Inspector]:
    """A worker that the tests of this module share; one that is harmed is replaced before the next."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as shared:
        before = shared.pids
        yield shared
        assert 1 == len(shared.pids), (before, shared.pids)


async def unreadable(inspector: Inspector, sample: bytes) -> str:
    """Why the sample is refused."""
    with pytest.raises(SampleUnreadable) as caught:
        await inspector.inspect(sample)
    return str(caught.value)


def cpu_seconds(pid: int) -> float:
    """How much processor time the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def until(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # other processes set no events of ours
            await asyncio.sleep(0.005)


def replaced(logs: list[EventDict]) -> list[tuple[str, int]]:
    """Why workers were replaced, and their exit statuses."""
    return [
        (line["cause"], line["exit_status"]) for line in logs if line["event"] == "inspection worker replaced"
    ]


@pytest.mark.parametrize(
    ("name", "upload", "rate", "seconds"),
    [
        ("wav", ("audio/wav", "wav"), 44100, 6.0866),
        ("mp3", ("audio/mpeg", "mp3"), 44100, 6.0866),
        ("ogg", ("audio/ogg", "ogg"), 44100, 6.0866),
        ("opus", ("audio/ogg", "ogg"), 48000, 6.086),
        ("flac", ("audio/flac", "flac"), 44100, 6.0866),
        ("m4a", ("audio/mp4", "m4a"), 44100, 6.086),
        ("webm", ("audio/webm", "webm"), 48000, 6.094),
    ],
)
async def test_formats(
    inspector: Inspector, name: Format, upload: tuple[str, str], rate: int, seconds: float
) -> None:
    """Tells every format by its content, and measures it as the tools in samples/README.md do."""
    found = await inspector.inspect(SPEECH[name])

    assert (name, *upload, rate) == (found.format, found.media_type, found.extension, found.sample_rate)
    assert pytest.approx(seconds, abs=0.025) == found.duration_seconds
    assert pytest.approx(5.08, abs=0.07) == found.sounding_seconds


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("wav", 3.043),
        ("mp3", 3.031),
        ("ogg", 2.537),
        ("opus", 1.993),
        ("flac", 2.694),
        ("m4a", 2.601),
        ("webm", 2.954),
    ],
)
async def test_cut(inspector: Inspector, name: str, seconds: float) -> None:
    """Of a file that is cut in half, counts what is left."""
    sample = SPEECH[name]

    found = await inspector.inspect(sample[: len(sample) // 2])

    assert pytest.approx(seconds, abs=0.035) == found.duration_seconds


@pytest.mark.parametrize(
    ("name", "mark", "offset", "lie"),
    [
        ("wav", b"data", 0, struct.pack("<I", 0)),
        ("wav", b"data", 0, struct.pack("<I", 0xFFFFFFFF)),
        ("wav", b"data", 0, struct.pack("<I", 0x7FFFFFFF)),
        ("flac", b"fLaC", 18, struct.pack(">I", 1)),
        ("flac", b"fLaC", 18, struct.pack(">I", 0xFFFFFFFF)),
        ("mp3", b"Info", 4, struct.pack(">I", 2)),
        ("mp3", b"Info", 4, struct.pack(">I", 10_000_000)),
        ("m4a", b"mdhd", 16, struct.pack(">I", 1)),
        ("m4a", b"mdhd", 16, struct.pack(">I", 0x7FFFFFFF)),
    ],
)
async def test_lying_header(inspector: Inspector, name: str, mark: bytes, offset: int, lie: bytes) -> None:
    """Counts what is there, whatever the header claims."""
    found = await inspector.inspect(patched(SPEECH[name], mark, offset, lie))

    assert pytest.approx(6.087, abs=0.05) == found.duration_seconds


@pytest.mark.parametrize("name", ["wav", "mp3", "ogg", "opus", "flac", "m4a", "webm"])
async def test_damaged_middle(inspector: Inspector, name: str) -> None:
    """Steps over what is broken and counts the rest."""
    sample = SPEECH[name]
    middle = len(sample) // 2
    damaged = sample[:middle] + random.Random(7).randbytes(500) + sample[middle + 500 :]

    found = await inspector.inspect(damaged)

    # A page of Opus is a second, and two of them are hit.
    assert pytest.approx(5.1, abs=1.05) == found.duration_seconds


async def test_tagged(inspector: Inspector) -> None:
    """Looks behind an ID3 tag, also one whose text is in no known encoding."""
    text = b"\x03\xff\xfe\xfa broken"
    frame = b"TIT2" + struct.pack(">IH", len(text), 0) + text
    tag = b"ID3\x03\x00\x00" + bytes([0, 0, 0, len(frame)]) + frame

    found = [(await inspector.inspect(tag + SPEECH[name])).format for name in ("mp3", "flac")]

    assert ["mp3", "flac"] == found


@pytest.mark.parametrize(("container", "codec"), [("ipod", "aac"), ("webm", "libopus")])
async def test_eight_channels(inspector: Inspector, container: str, codec: str) -> None:
    """As many channels as are let in can be measured."""
    found = await inspector.inspect(encoded(container, codec, rate=48000, layout="7.1"))

    assert pytest.approx((2.0, 48000), abs=0.05) == (found.duration_seconds, found.sample_rate)


async def test_telephone(inspector: Inspector) -> None:
    """Reads what a telephone exchange records, and reports its rate."""
    with io.BytesIO() as file:
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            out.writeframes(b"\x00\x10" * 24000)
        linear = file.getvalue()
    mu_law = recording(np.tile([0x80, 0x00], 12000).astype("u1"), rate=8000, width=1, code=7)

    found = [await inspector.inspect(sample) for sample in (linear, mu_law)]

    assert [(3.0, 8000)] * 2 == [(each.duration_seconds, each.sample_rate) for each in found]


async def test_first_sound_counts(inspector: Inspector) -> None:
    """Beside a picture and a second sound, only the first sound is measured."""
    found = await inspector.inspect(encoded("mp4", "aac", streams=2, video=True))

    assert "m4a" == found.format
    assert pytest.approx(2.0, abs=0.05) == found.duration_seconds


# Each process that runs tests reads the table, and makes few of what is in it.
NOT_AUDIO = {
    "nothing": lambda: b"",
    "one byte": lambda: b"\xff",
    "garbage": lambda: random.Random(1).randbytes(50_000),
    "HTML": lambda: b"<!doctype html><title>502 Bad Gateway</title>",
    "UTF-16 text": lambda: "Voice sample".encode("utf-16"),
    "ZIP": lambda: b"PK\x03\x04" + bytes(100),
    "PNG": lambda: b"\x89PNG\r\n\x1a\n" + bytes(100),
    "AVI": lambda: b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(100),
    "playlist": lambda: b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n",
    "concat script": lambda: b"ffconcat version 1.0\nfile /etc/passwd\n",
    "bare AAC": lambda: encoded("adts", "aac"),
    "tagged AAC": lambda: b"ID3\x03\x00\x00\x00\x00\x00\x00" + encoded("adts", "aac"),
    "WebM": lambda: SPEECH["webm"][:200],
    "WAV without sound": lambda: recording(np.empty(0, "<i2")),
    "WAV without a format": lambda: b"RIFF\x00\x00\x00\x00WAVE" + bytes(1000),
    "OGG without sound": lambda: b"OggS" + random.Random(2).randbytes(5000),
    "FLAC without sound": lambda: SPEECH["flac"][:100],
    "MP4 without sound": lambda: encoded("mp4", "aac", streams=0, video=True),
    "MP3 without sound": lambda: b"\xff\xfb\x90\x00" + bytes(5000),
    "tag without sound": lambda: b"ID3\x03\x00\x00\x7f\x7f\x7f\x7f" + bytes(5000),
    "no rate": lambda: patched(SPEECH["wav"], b"fmt ", 8, struct.pack("<I", 0)),
    "absurd rate": lambda: patched(SPEECH["wav"], b"fmt ", 8, struct.pack("<I", 0x7FFFFFFF)),
    "absurd channels": lambda: patched(SPEECH["wav"], b"fmt ", 6, struct.pack("<H", 0xFFFF)),
    "nine channels": lambda: recording(np.zeros(9000, "<i2"), channels=9),
}


@pytest.mark.parametrize("sample", NOT_AUDIO.values(), ids=NOT_AUDIO.keys())
async def test_not_audio(inspector: Inspector, sample: Callable[[], bytes]) -> None:
    """Refuses what is not one of the formats, and what is not sound within them."""
    problem = await unreadable(inspector, sample())

    assert problem.startswith("Voice sample unreadable: it ")


async def test_longer_than_wanted(inspector: Inspector) -> None:
    """Stops soon after the longest wanted: ten megabytes of joined Opus files last 40 minutes."""
    found = await inspector.inspect(SPEECH["opus"] * 100)

    assert 0 < found.duration_seconds - MAX_SECONDS < 2


async def test_bomb(inspector: Inspector) -> None:
    """Stops as soon with a small file that holds much silence."""
    bomb = encoded("flac", "flac", seconds=1200, rate=8000, loud=False)

    found = await inspector.inspect(bomb)

    assert (True, True) == (len(bomb) < 300_000, 0 < found.duration_seconds - MAX_SECONDS < 10)


@pytest.mark.parametrize("name", ["wav", "mp3", "ogg", "opus", "flac", "m4a", "webm"])
async def test_corruption(inspector: Inspector, name: str) -> None:
    """Whatever is changed, cut out or repeated: an answer or a refusal, and the workers are still there."""
    chance = random.Random(name)
    outcomes = set[type]()
    for _ in range(15):
        sample = bytearray(SPEECH[name])
        reach = chance.choice([100, 1000, len(sample)])
        for _ in range(chance.choice([1, 4, 40])):
            sample[chance.randrange(reach)] = chance.randrange(256)
        at = chance.randrange(len(sample))
        sample[at:at] = sample[at // 2 : at // 2 + chance.choice([0, 0, 999])]
        del sample[at : at + chance.choice([0, 0, 999])]
        try:
            outcomes.add(type(await inspector.inspect(bytes(sample))))
        except SampleUnreadable as refused:
            outcomes.add(type(refused))

    assert outcomes <= {Finding, SampleUnreadable}
    assert "wav" == (await inspector.inspect(SPEECH["wav"])).format


async def test_silent_worker(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing that ffmpeg says about a sample reaches the standard error of the service."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        await inspector.inspect(SPEECH["mp3"][1000:2000].join([SPEECH["mp3"]] * 2))
        await unreadable(inspector, NOT_AUDIO["OGG without sound"]())

    assert "" == capfd.readouterr().err


async def test_enough_sound() -> None:
    """Whether there is enough sound is found out, and of a sample that has more not how much; its length is."""
    async with Inspector(workers=1, enough_sound=1.0, max_seconds=MAX_SECONDS) as inspector:
        whole = await inspector.inspect(SPEECH["wav"])
        part = await inspector.inspect(recording(HALF_A_SECOND))

    assert 1.0 <= whole.sounding_seconds < 5.0
    assert pytest.approx(6.09, abs=0.05) == whole.duration_seconds
    assert pytest.approx(0.5, abs=0.03) == part.sounding_seconds


async def test_sample_dropped() -> None:
    """A sample that was looked at is held nowhere for long, whether or not another one comes."""

    def held() -> int:
        """The bytes in all files that this process has for samples."""
        size = 0
        for file in list(Path("/proc/self/fd").iterdir()):
            with contextlib.suppress(FileNotFoundError):  # what the folder was read with is closed by now
                size += file.stat().st_size if "memfd:sample" in str(file.readlink()) else 0
        return size

    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        await inspector.inspect(SPEECH["wav"])

        await until(lambda: held() == 0)


async def finished(*samples: tuple[str, bool]) -> list[str]:
    """The order in which one worker is done with samples that come together, each with whether a call waits."""
    done: list[str] = []

    async def look(inspector: Inspector, name: str, *, call: bool) -> None:
        await inspector.inspect(SPEECH[name], call=call)
        done.append(name)

    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector, asyncio.TaskGroup() as together:
        for name, call in samples:
            together.create_task(look(inspector, name, call=call))
    return done


async def test_in_turn() -> None:
    """Samples are looked at in the order in which they came."""
    order = await finished(("opus", True), ("wav", True), ("ogg", True), ("flac", True))

    assert ["opus", "wav", "ogg", "flac"] == order


async def test_calls_first() -> None:
    """A sample that a call waits for is looked at before those that came earlier and that none waits for."""
    order = await finished(("opus", False), ("wav", False), ("ogg", True), ("flac", True))

    assert ["ogg", "flac", "opus", "wav"] == order


async def test_worker_for_calls() -> None:
    """Of several workers one takes only samples that a call waits for."""
    async with Inspector(workers=2, max_seconds=MAX_SECONDS) as inspector, asyncio.TaskGroup() as together:
        for pid in inspector.pids:
            os.kill(pid, signal.SIGSTOP)
        for name in ("opus", "wav"):
            together.create_task(inspector.inspect(SPEECH[name], call=False))
        await until(lambda: len(inspector._others) == 1)
        together.create_task(inspector.inspect(SPEECH["flac"]))
        await until(lambda: len(inspector._unfinished) == 3 and not inspector._calls)
        waiting = len(inspector._others)
        for pid in inspector.pids:
            os.kill(pid, signal.SIGCONT)

    assert 1 == waiting


async def test_worker_that_cannot_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample that waits for a new worker holds up no other that none of the calls waits for."""
    async with Inspector(workers=2, wall_seconds=60, cpu_seconds=20, max_seconds=1e9) as inspector:
        idle = {pid: cpu_seconds(pid) for pid in inspector.pids}
        asked = asyncio.create_task(inspector.inspect(ENDLESS, call=False))
        await until(lambda: any(cpu_seconds(pid) > before + 0.05 for pid, before in idle.items()))
        busy = max(idle, key=lambda pid: cpu_seconds(pid) - idle[pid])
        with monkeypatch.context() as without:
            without.setattr(sys, "executable", "/nowhere/python")
            os.kill(busy, signal.SIGKILL)
            await until(lambda: busy not in inspector.pids)

            assert "flac" == (await inspector.inspect(SPEECH["flac"], call=False)).format
        asked.cancel()
        await asyncio.wait((asked,))


async def test_queue_full() -> None:
    """Refuses at once what would be one too many in the queue, and forgets none of the others."""
    async with Inspector(workers=1, waiting=1, max_seconds=MAX_SECONDS) as inspector:
        sample = SPEECH["wav"]
        together = [asyncio.create_task(inspector.inspect(sample)) for _ in range(3)]
        outcomes = await asyncio.gather(*together, return_exceptions=True)
        again = await inspector.inspect(sample)

    assert [Finding, Finding, InspectionUnavailable, Finding] == [type(each) for each in (*outcomes, again)]


async def test_beside_a_slow_sample() -> None:
    """A sample that keeps one worker holds nobody else up while there is another worker."""
    async with Inspector(workers=2, max_seconds=MAX_SECONDS) as inspector:
        slow = min(inspector.pids)
        os.kill(slow, signal.SIGSTOP)
        try:
            asked = [asyncio.create_task(inspector.inspect(SPEECH["wav"])) for _ in range(8)]
            await until(lambda: [False] == [each.done() for each in asked if not each.done()])
        finally:
            os.kill(slow, signal.SIGCONT)
        await asyncio.gather(*asked)


async def test_nobody_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that were given up leave nothing behind, also while no worker can be started to take them."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        (pid,) = inspector.pids
        with monkeypatch.context() as without:
            without.setattr(sys, "executable", "/nowhere/python")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not inspector.pids)
            for _ in range(100):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(inspector.inspect(SPEECH["wav"]), 0.001)

            assert 0 == len(inspector._calls)
        assert "flac" == (await inspector.inspect(SPEECH["flac"])).format


async def test_cancelled() -> None:
    """A caller that hangs up, sooner or later, leaves a worker that answers the next caller rightly."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        pids = inspector.pids
        while True:
            begun, waiting = (asyncio.create_task(inspector.inspect(SPEECH["opus"] * 10)) for _ in range(2))
            idle = cpu_seconds(*pids)
            await until(lambda idle=idle: cpu_seconds(*pids) > idle)
            begun.cancel()
            waiting.cancel()
            await asyncio.wait((begun, waiting))
            if begun.cancelled():  # and not done before, while this process had no time
                break
        found = await inspector.inspect(SPEECH["flac"])

        assert waiting.cancelled()
        assert ("flac", pids) == (found.format, inspector.pids)


async def test_killed_while_idle() -> None:
    """A worker that died while nobody needed it is replaced before anybody does."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        (pid,) = inspector.pids
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(inspector.pids - {pid}) == 1)
        found = await inspector.inspect(SPEECH["wav"])

    assert "wav" == found.format


async def test_killed_while_working() -> None:
    """A sample whose worker died gets a second one."""
    async with Inspector(workers=1, wall_seconds=60, cpu_seconds=20, max_seconds=1e9) as inspector:
        (first,) = inspector.pids
        idle = cpu_seconds(first)
        once = asyncio.create_task(inspector.inspect(SPEECH["mp3"] * 100))
        await until(lambda: cpu_seconds(first) > idle + 0.05)
        os.kill(first, signal.SIGKILL)

        assert (await once).duration_seconds > 600


async def test_killed_twice() -> None:
    """A sample of which two workers died is refused, but not blamed for a SIGKILL, which it cannot send."""
    outcomes: list[Finding | BaseException] = []
    with capture_logs() as logs:
        async with Inspector(workers=1, wall_seconds=60, cpu_seconds=20, max_seconds=1e9) as inspector:
            for end in (signal.SIGSEGV, signal.SIGKILL):
                twice = asyncio.create_task(inspector.inspect(ENDLESS))
                await until(lambda: len(inspector._unfinished) == 1)
                (job,) = inspector._unfinished
                for tries in (1, 2):
                    await until(lambda job=job, tries=tries: job.tries == tries)
                    os.kill(*inspector.pids, end)
                outcomes += await asyncio.gather(twice, return_exceptions=True)
            again = await inspector.inspect(SPEECH["wav"])

    assert [SampleUnreadable, InspectionUnavailable] == [type(outcome) for outcome in outcomes]
    assert [("ended", -signal.SIGSEGV)] * 2 + [("ended", -signal.SIGKILL)] * 2 == replaced(logs)
    assert "wav" == again.format


async def test_wall_clock() -> None:
    """Stops a worker that has no time to be done, while others go on; the sample is not to blame."""

    async def heard() -> Finding:
        """On a machine that stands still this sample has no time either, now and then."""
        for _ in range(20):
            with contextlib.suppress(InspectionUnavailable):
                return await inspector.inspect(SPEECH["wav"])
        raise AssertionError

    async with Inspector(workers=2, wall_seconds=0.6, max_seconds=1e9) as inspector:
        slow = asyncio.create_task(inspector.inspect(ENDLESS))
        found = await heard()
        with pytest.raises(InspectionUnavailable, match="too busy"):
            await slow
        again = await heard()

    assert [found] == [again]


async def test_held_up() -> None:
    """A sample whose worker had no time, rather than used it up, is heard when there is some."""
    async with Inspector(workers=1, cpu_seconds=1, max_seconds=MAX_SECONDS) as inspector:
        (pid,) = inspector.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = asyncio.create_task(inspector.inspect(SPEECH["opus"]))
        await asyncio.sleep(1.5)  # longer than what it may use
        assert not waiting.done()
        os.kill(pid, signal.SIGCONT)
        found = await waiting

        assert ("opus", {pid}) == (found.format, inspector.pids)


async def test_stopped_for_good() -> None:
    """A worker that gets no time at all is replaced; the sample is not to blame."""
    async with Inspector(workers=1, wall_seconds=0.5, max_seconds=MAX_SECONDS) as inspector:
        (pid,) = inspector.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(InspectionUnavailable, match="too busy"):
            await inspector.inspect(SPEECH["wav"])
        await until(lambda: len(inspector.pids - {pid}) == 1)

        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def half_of_the_time(pid: int) -> None:
    """Lets a process run for half of the time only, as one does that shares its core with a busy loop."""
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.05)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.05)
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_on_a_busy_machine() -> None:
    """The costliest honest recording, ten minutes of eight channels, is heard beside whatever else goes on."""
    minutes = 300 * encoded("ogg", "libopus", seconds=2, rate=48000, layout="7.1")
    async with Inspector(workers=1, wall_seconds=200, max_seconds=600.0) as inspector:
        held_up = asyncio.create_task(half_of_the_time(*inspector.pids))
        found = await inspector.inspect(minutes)
        held_up.cancel()

    assert pytest.approx(600.0, abs=1.0) == found.duration_seconds


async def test_waited_in_vain() -> None:
    """Sends away who waited too long, for whose sample it is not to blame."""
    async with Inspector(workers=1, wall_seconds=0.1, max_seconds=1e9) as inspector:
        slow = asyncio.create_task(inspector.inspect(ENDLESS))
        late = asyncio.create_task(inspector.inspect(SPEECH["wav"]))
        outcomes = await asyncio.gather(slow, late, return_exceptions=True)

    assert [InspectionUnavailable] * 2 == [type(each) for each in outcomes]


async def test_processor_time() -> None:
    """A sample that needs too much processor time ends its worker, and is not tried again."""
    async with Inspector(workers=1, wall_seconds=120, cpu_seconds=1, max_seconds=1e9) as inspector:
        pids = inspector.pids
        problem = await unreadable(inspector, ENDLESS)
        found = await inspector.inspect(SPEECH["wav"])

        assert "Voice sample unreadable: it takes too much processor time to decode" == problem
        assert ("wav", frozenset()) == (found.format, inspector.pids & pids)


async def test_memory() -> None:
    """A sample that needs too much memory is refused, and its worker is not used again."""
    greedy = patched(SPEECH["m4a"], b"stts", 4, struct.pack(">I", 0x0FFFFFFF))
    with capture_logs() as logs:
        async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
            pids = inspector.pids
            problem = await unreadable(inspector, greedy)
            found = await inspector.inspect(SPEECH["wav"])

            assert ("wav", frozenset()) == (found.format, inspector.pids & pids)
    assert "Voice sample unreadable: it needs too much memory" == problem
    assert ["memory used up"] == [cause for cause, _ in replaced(logs)]


async def test_damaged_length() -> None:
    """A length that is damaged, on the way through a recording, ends neither the recording nor its worker."""
    pieces = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "frag_duration": "1000000"}
    sample = encoded("mp4", "aac", seconds=6, options=pieces)
    at = sample.rindex(b"trun", 0, sample.rindex(b"trun")) + 100
    with capture_logs() as logs:
        async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
            found = await inspector.inspect(sample[:at] + sample[at + 64 :])

    assert 4 < found.duration_seconds < 6
    assert [] == replaced(logs)


async def test_damaged_channels(inspector: Inspector) -> None:
    """Sound in seventeen channels, amid sound in one, is damaged, and the rest is heard."""
    # Of 3,000 places and noises, the one in which the decoder takes the noise for so many channels.
    noise = random.Random(1526)
    sample = SPEECH["m4a"]
    at = noise.randrange(len(sample) * 6 // 10, len(sample) - 2000)
    found = await inspector.inspect(sample[:at] + noise.randbytes(700) + sample[at + 700 :])

    assert 5 < found.duration_seconds < 6.1


async def test_signals() -> None:
    """Ctrl-C and a service manager's SIGTERM, which reach every process, leave the end to the parent."""
    async with Inspector(workers=1, max_seconds=MAX_SECONDS) as inspector:
        (pid,) = inspector.pids
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
        await inspector.inspect(SPEECH["wav"])

        assert {pid} == inspector.pids


async def test_not_started(capfd: pytest.CaptureFixture[str]) -> None:
    """Says so when a worker cannot start, and leaves none behind."""
    inspector = Inspector(memory_mb=64, max_seconds=MAX_SECONDS)

    with pytest.raises(InspectionUnavailable, match="did not start"):
        async with inspector:
            pass

    assert frozenset() == inspector.pids
    assert "MemoryError" in capfd.readouterr().err


async def test_stopped() -> None:
    """On the way out nobody is left waiting, and no process either."""
    async with Inspector(workers=1, wall_seconds=60, max_seconds=1e9) as inspector:
        (pid,) = inspector.pids
        asked = [asyncio.create_task(inspector.inspect(ENDLESS)) for _ in range(2)]
        idle = cpu_seconds(pid)
        await until(lambda: cpu_seconds(pid) > idle)
    outcomes = await asyncio.gather(*asked, return_exceptions=True)

    assert [InspectionUnavailable] * 2 == [type(each) for each in outcomes]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(InspectionUnavailable):
        await inspector.inspect(SPEECH["wav"])


async def test_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker has neither the sockets nor the secrets of the service."""
    monkeypatch.setenv("ELEVENLABS_API_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.set_inheritable(True)
        address = server.getsockname()
        inspector = await Inspector(workers=1, max_seconds=MAX_SECONDS).__aenter__()
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        assert "ELEVENLABS_API_KEY" not in worker._environment()
    finally:
        await inspector.__aexit__(None, None, None)


PARENT = """
import asyncio, sys, uvloop
from cloner.audio.inspector import Inspector

async def main():
    async with Inspector(workers=1, wall_seconds=60, cpu_seconds=60, max_seconds=1e9) as inspector:
        print(*inspector.pids, flush=True)
        await inspector.inspect(sys.stdin.buffer.read())
        print("done", flush=True)
        await asyncio.Event().wait()

uvloop.run(main())
"""


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "working"])
async def test_orphaned(*, busy: bool) -> None:
    """A worker is gone when its parent is killed, whether it is waiting or in the middle of a sample."""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin
    assert parent.stdout
    worker = int(await parent.stdout.readline())
    descriptor = os.pidfd_open(worker)
    try:
        idle = cpu_seconds(worker)
        parent.stdin.write(ENDLESS if busy else SPEECH["wav"])
        parent.stdin.close()
        if busy:
            await until(lambda: cpu_seconds(worker) > idle + 0.05)
        else:
            await parent.stdout.readline()
        parent.kill()
        await parent.wait()
        ended, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 1)
    finally:
        os.close(descriptor)

    assert [descriptor] == ended
