"""`precall`: what an operator does to voices by hand, through a running cloner.

    precall voices [--caller <caller.json]
    precall forget --voice-id fRTV2w5bpHOEitDdNp62
    precall forget <caller.json
    precall replace recording.mp3 <caller.json
    precall enrol recordings callers.csv

A caller is read from standard input, because everybody on the machine can read a command line. It is JSON
with `phone_number`, `name` and `date_of_birth`, as they were given for the voice; for `replace` also with
`consent`, the reference of the caller's consent. `enrol` takes a CSV with the columns `file`, `phone_number`,
`name`, `date_of_birth` and `consent`, and continues where an earlier run ended.

`CLONER_TARGET` (localhost:50051) is the address of the cloner and `CLONER_TOKEN` its token. If the cloner
speaks TLS, `CLONER_TLS_CA` holds the authorities for its certificate, and `CLONER_TLS_CLIENT_CERT` and
`CLONER_TLS_CLIENT_KEY` what this command shows of itself. `DEFAULT_REGION` is the country (such as NL) of
numbers without a country.

What was done has exit status 0, also if standard output cannot be written.
"""

import argparse
import asyncio
import codecs
import io
import os
import signal
import sys
from pathlib import Path

import msgspec
from precall_client import Caller, PrecallError, Tls, TlsInvalid, Voice, connect

from callerid import e164, region_fault
from cli import UNREACHED
from environment import (
    EnvironmentInvalid,
    Pem,
    Target,
    Token,
    complain,
    drop_output,
    parsing,
    read,
    report_done,
)

__all__ = ["main"]

PROGRAM = "precall"
CLOSED = 128 + signal.SIGPIPE


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the cloner is, and what it asks for."""

    cloner_target: Target = Target("localhost:50051")
    cloner_token: tuple[Token, ...] = ()
    cloner_tls_ca: Pem | None = None
    cloner_tls_client_cert: Pem | None = None
    cloner_tls_client_key: Pem | None = None
    default_region: str | None = None

    def __post_init__(self) -> None:
        if fault := region_fault(self.default_region):
            raise ValueError(fault)


class CallerText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller, as read from standard input."""

    phone_number: str = ""
    name: str = ""
    date_of_birth: str = ""
    consent: str = ""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if it was done, 1 if the cloner refused or cannot be reached, 2 for a wrong call.

    It is 141 if nobody reads the output any more, as when a shell ends a program for it.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    voices = commands.add_parser("voices", help="list our voices, newest first, with their consents")
    voices.add_argument("--caller", action="store_true", help="only those of the caller on standard input")
    forget = commands.add_parser(
        "forget", help="delete a caller's voices and all that is known of the caller"
    )
    forget.add_argument("--voice-id", default="", help="whoever this voice belongs to, instead of a caller")
    replace = commands.add_parser("replace", help="replace a caller's voice by one from a new sample")
    replace.add_argument("recording", type=Path)
    enrol = commands.add_parser("enrol", help="clone the voices of a folder of recordings ahead of time")
    enrol.add_argument("folder", type=Path)
    enrol.add_argument("callers", type=Path, help="a CSV of who speaks in which file of the folder")
    enrol.add_argument(
        "--report", type=Path, help="what became of each line (CALLERS with .report.csv behind it)"
    )
    enrol.add_argument(
        "--at-once", type=int, default=3, choices=range(1, 21), metavar="N", help="1 to 20, by default 3"
    )
    with parsing():
        chosen = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be unable to hold every letter
        sys.stdout.reconfigure(errors="backslashreplace")
    fault = ""
    try:
        access = read(Access, os.environ)
        status = asyncio.run(_run(chosen, access))
        print(end="", flush=True)
    except EnvironmentInvalid as invalid:
        status, fault = 2, str(invalid)
    except msgspec.MsgspecError:
        status, fault = 2, 'expected a caller on standard input: {"phone_number": ...}'
    except BrokenPipeError:
        status = CLOSED
        drop_output()
    except OSError as failure:
        status, fault = 2, f"{failure.filename or 'standard output'}: {failure.strerror}"
        if not failure.filename:
            drop_output()
    except TlsInvalid as invalid:
        status, fault = 2, f"CLONER_TLS: {invalid}"
    except PrecallError as failure:
        status, fault = 1, _sentence(failure, access)
    if fault:
        complain(f"{PROGRAM}: {fault}")
    return status


def _sentence(failure: PrecallError, access: Access) -> str:
    if failure.reason == "CLONER_UNAVAILABLE" and not failure.told:
        cause = f" ({failure.cause})" if failure.cause else ""
        return f"The cloner cannot be reached at {access.cloner_target}{cause}: {UNREACHED}"
    return str(failure)


async def _run(chosen: argparse.Namespace, access: Access) -> int:
    token = access.cloner_token[0].reveal() if access.cloner_token else None
    async with connect(access.cloner_target, token=token, tls=_tls(access)) as precall:
        match chosen.command:
            case "voices":
                caller = _caller(_read_caller(), access) if chosen.caller else None
                async for voice in precall.all_voices(caller=caller):
                    print(_shown(voice))
            case "forget":
                caller = None if chosen.voice_id else _caller(_read_caller(), access)
                answer = await precall.forget_caller(caller=caller, voice_id=chosen.voice_id)
                done = f"{answer.voices_deleted} voices deleted, {answer.voices_pending} to be deleted later"
                report_done(done, PROGRAM)
            case "replace":
                sample = chosen.recording.read_bytes()
                given = _read_caller()
                replaced = await precall.replace_voice(
                    caller=_caller(given, access), sample=sample, consent=given.consent
                )
                report_done(f"{replaced.voice.voice_id}  {replaced.voice.name}", PROGRAM)
            case "enrol":
                # Only here: the other commands start without what it needs.
                from cli.enrolment import enrol

                return await enrol(
                    precall, folder=chosen.folder, callers=chosen.callers,
                    report=chosen.report or Path(f"{chosen.callers}.report.csv"), at_once=chosen.at_once,
                    region=access.default_region,
                )  # fmt: skip
    return 0


def _tls(access: Access) -> Tls | None:
    ca, cert, key = (
        None if pem is None else pem.reveal().encode()
        for pem in (access.cloner_tls_ca, access.cloner_tls_client_cert, access.cloner_tls_client_key)
    )
    return None if ca is None and cert is None and key is None else Tls(ca=ca, cert=cert, key=key)


def _shown(voice: Voice) -> str:
    line = f"{voice.voice_id}  {voice.create_time.ToJsonString()}  {voice.name}"
    return f"{line}  {voice.consent_time.ToJsonString()}  {voice.consent}" if voice.consent else line


def _read_caller() -> CallerText:
    content = b"" if sys.stdin is None else sys.stdin.buffer.read()
    # Editors and shells of Windows begin a text with a BOM.
    return msgspec.json.decode(content.removeprefix(codecs.BOM_UTF8), type=CallerText)


def _caller(given: CallerText, access: Access) -> Caller:
    # Without a country to read it in, a number is left to the cloner, which may have one.
    region = access.default_region
    number = (e164(given.phone_number, region) if region else None) or given.phone_number
    return Caller(name=given.name, date_of_birth=given.date_of_birth, phone_number=number)
