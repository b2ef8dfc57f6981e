import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable

import pytest
import trustme
from precall.v1 import cloning_pb2 as pb

from cli.command import main
from emulator import Emulator
from environment import Secret
from tests.kit.python import python

TOKEN = "token-of-the-cloner"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
Command = Callable[..., Awaitable[tuple[int, str, str]]]
CALLER = pb.Caller(phone_number="+31612345678", name="Ivan")


@pytest.fixture
def command(completed) -> Command:
    """Exit status and output of the command, asked of the cloner on that port."""

    async def run(
        port: int, *arguments: str, told: str = "", token: str = TOKEN, **environ: str
    ) -> tuple[int, str, str]:
        known = {"PATH": os.environ["PATH"], "CLONER_TARGET": f"127.0.0.1:{port}", "CLONER_TOKEN": token}
        return await completed("cli", *arguments, environ=known | environ, told=told.encode())

    return run


@pytest.fixture
async def cloner(cloning):
    """A cloner that wants its token, with one voice of Ivan's."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as stub:
        yield stub


async def test_forget(cloner, command: Command, emulator: Emulator, speech: bytes) -> None:
    """A caller told on standard input is forgotten, and listed no more."""
    voice = (
        await cloner.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), metadata=METADATA)
    ).voice
    status, listed, _ = await command(cloner.port, "voices")
    assert (0, True) == (status, listed.startswith(f"{voice.voice_id}  20"))

    told = '{"phone_number": "+31612345678", "name": "Ivan"}'
    assert (0, listed, "") == await command(cloner.port, "voices", "--caller", told=told)
    assert (0, listed, "") == await command(
        cloner.port, "voices", "--caller", told='{"phone_number": "+31612345678"}'
    )
    assert (0, "", "") == await command(
        cloner.port, "voices", "--caller", told='{"phone_number": "+31612345679"}'
    )
    # Editors and shells of Windows begin it with a BOM.
    assert (0, "1 voices deleted, 0 to be deleted later\n", "") == await command(
        cloner.port, "forget", told=f"\ufeff{told}"
    )

    assert (0, "", "") == await command(cloner.port, "voices")
    assert [] == emulator.voices.custom


async def test_region(cloner, command: Command, speech: bytes) -> None:
    """A number without its country is read in the one that the command is told, and only in a real one."""
    await cloner.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), metadata=METADATA)
    told = '{"phone_number": "06 12345678", "name": "Ivan"}'
    status, _, err = await command(cloner.port, "forget", told=told, DEFAULT_REGION="31")
    assert (2, True) == (status, "DEFAULT_REGION" in err)
    # An id of WhatsApp begins with its country, so this is not Ivan's.
    status, _, err = await command(
        cloner.port, "forget", told='{"phone_number": "whatsapp:612345678"}', DEFAULT_REGION="NL"
    )
    assert (1, True) == (status, "caller.phone_number" in err)

    assert (0, "1 voices deleted, 0 to be deleted later\n", "") == await command(
        cloner.port, "forget", told=told, DEFAULT_REGION="NL"
    )


async def test_consent(cloner, command: Command, speech: bytes, samples) -> None:
    """Shows the consent to a voice and when it was told; replacing the voice takes another."""
    request = pb.CloneVoiceRequest(caller=CALLER, sample=speech, consent="form 17")
    voice = (await cloner.CloneVoice(request, metadata=METADATA)).voice
    told = '{"phone_number": "+31612345678", "name": "Ivan", "consent": "form 18, page 2"}'

    _, before, _ = await command(cloner.port, "voices")
    await command(cloner.port, "replace", str(samples / "speech.flac"), told=told)
    _, after, _ = await command(cloner.port, "voices")

    assert before.endswith(f"  {voice.name}  {voice.consent_time.ToJsonString()}  form 17\n")
    assert after.endswith("Z  form 18, page 2\n")


async def test_forget_by_voice(cloner, command: Command, emulator: Emulator, speech: bytes) -> None:
    """Whoever a voice belongs to is forgotten."""
    voice = (
        await cloner.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), metadata=METADATA)
    ).voice

    status, _, _ = await command(cloner.port, "forget", "--voice-id", voice.voice_id)

    assert (0, []) == (status, emulator.voices.custom)


async def test_replace(
    cloner, command: Command, emulator: Emulator, speech: bytes, samples, eventually
) -> None:
    """A new recording makes a new voice."""
    old = (
        await cloner.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), metadata=METADATA)
    ).voice
    told = '{"phone_number": "+31612345678", "name": "Ivan"}'

    status, out, _ = await command(cloner.port, "replace", str(samples / "speech.flac"), told=told)

    assert 0 == status
    await eventually(lambda: [out.split()[0]] == [voice.voice_id for voice in emulator.voices.custom])
    assert old.voice_id != out.split()[0]


@pytest.mark.parametrize(
    ("arguments", "told", "token", "status", "says"),
    [
        (("forget",), "no json", TOKEN, 2, "expected a caller on standard input"),
        (("forget",), '{"phone": "1"}', TOKEN, 2, "expected a caller on standard input"),
        (("forget",), "{}", TOKEN, 1, "caller.phone_number"),
        (("forget",), '{"phone_number": "n/a"}', TOKEN, 1, "caller.phone_number is not a phone number"),
        (("forget",), '{"phone_number": "0612345678", "name": "Ivan"}', TOKEN, 1, "DEFAULT_REGION"),
        (("voices", "--caller"), '{"phone_number": "anonymous"}', TOKEN, 1, "caller.phone_number"),
        (("replace", "/nowhere.mp3"), "{}", TOKEN, 2, "/nowhere.mp3: No such file"),
        (("voices",), "", "another-token-16", 1, "authorization"),
    ],
)
async def test_refused(
    cloner, command: Command, arguments: tuple[str, ...], told: str, token: str, status: int, says: str
) -> None:
    """A wrong call, and one that the cloner refuses, are told in one line."""
    found, out, err = await command(cloner.port, *arguments, told=told, token=token)

    assert (status, "", 1) == (found, out, len(err.splitlines()))
    assert says in err


async def test_cloner_that_is_not_there(cloner, command: Command) -> None:
    """Where nobody answers, or TLS is spoken on one side alone, one line names the place and what to look at."""
    says = "is CLONER_TARGET right, is TLS spoken on both sides, and what does python -m cloner.health say?"
    root = trustme.CA().cert_pem.bytes().decode()

    told = "precall: The cloner cannot be reached at 127.0.0.1"
    assert (1, "", f"{told}:1 (connection refused): {says}\n") == await command(1, "voices")
    assert (1, "", f"{told}:{cloner.port} (no TLS spoken there): {says}\n") == (
        await command(cloner.port, "voices", CLONER_TLS_CA=root)
    )


def test_without_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that was started without an input is told in one line what it lacks."""
    monkeypatch.setattr(sys, "stdin", None)

    assert 2 == main(["forget"])
    assert 'precall: expected a caller on standard input: {"phone_number": ...}\n' == capsys.readouterr().err


async def written(cloner, stdout: int, *arguments: str, **environ: str) -> tuple[int | None, str, str]:
    """Exit status, output and errors of a list of all voices, or another command, that is written there."""
    known = {"PATH": os.environ["PATH"], "CLONER_TARGET": f"127.0.0.1:{cloner.port}", "CLONER_TOKEN": TOKEN}
    async with python("-m", "cli", *(arguments or ["voices"]), env=known | environ, stdout=stdout) as listing:
        out, err = await listing.communicate()
    return listing.returncode, (out or b"").decode(), err.decode()


async def test_output_of_few_letters(cloner, speech: bytes) -> None:
    """What the output cannot show is written with escapes, and everything else as it is."""
    request = pb.CloneVoiceRequest(caller=CALLER, sample=speech, consent="formulier \u20ac 17")
    await cloner.CloneVoice(request, metadata=METADATA)

    status, out, err = await written(cloner, PIPE, PYTHONIOENCODING="ascii")

    assert (0, "") == (status, err)
    assert out.endswith("  formulier \\u20ac 17\n")


async def test_output_that_cannot_be_written(cloner, speech: bytes) -> None:
    """A full disk is told in one line, and what was done is done; whoever reads no further is left alone."""
    cloned = await cloner.CloneVoice(pb.CloneVoiceRequest(caller=CALLER, sample=speech), metadata=METADATA)
    full, (reader, writer) = os.open("/dev/full", os.O_WRONLY), os.pipe()
    os.close(reader)
    try:
        on_full_disk, unread = await written(cloner, full), await written(cloner, writer)
        done = await written(cloner, full, "forget", "--voice-id", cloned.voice.voice_id)
    finally:
        os.close(full)
        os.close(writer)

    assert (2, "", "precall: standard output: No space left on device\n") == on_full_disk
    assert (0, "", "precall: standard output: No space left on device\n") == done
    assert (141, "", "") == unread


async def test_key_for_an_authority(cloner, command: Command) -> None:
    """A key where a certificate should be is told, and not that nobody can be reached."""
    key = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"

    status, _, err = await command(cloner.port, "voices", CLONER_TLS_CA=key)

    assert (2, "precall: CLONER_TLS: ca holds no certificate\n") == (status, err)
