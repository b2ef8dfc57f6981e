"""`python -m cloner.command`: what an operator does to voices by hand, through a running cloner.

    python -m cloner.command voices [--caller <caller.json]
    python -m cloner.command forget --voice-id fRTV2w5bpHOEitDdNp62
    python -m cloner.command forget <caller.json
    python -m cloner.command replace recording.mp3 <caller.json
    python -m cloner.command enrol recordings callers.csv

A caller is told on standard input, as JSON with `phone_number`, `name` and `date_of_birth` as they
were told for the voice, because what stands on a command line can be read by everybody on the
machine; for `replace` also with `consent`, the reference of the caller's consent. `enrol` takes a CSV
with the columns `file`, `phone_number`, `name`, `date_of_birth` and `consent`, and goes on where an
earlier run ended. `CLONER_TARGET` (localhost:50051) says where the cloner is, `CLONER_TOKEN` is its
token, `DEFAULT_REGION` the country (such as NL) of numbers that are told without one.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import grpc
import msgspec
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub

from callerid import e164, region_fault
from environment import EnvironmentInvalid, Target, Token, read

__all__ = ["main"]

SECONDS = 60.0


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the cloner is, and what it wants to see."""

    cloner_target: Target = Target("localhost:50051")
    cloner_token: tuple[Token, ...] = ()
    default_region: str | None = None

    def __post_init__(self) -> None:
        if fault := region_fault(self.default_region):
            raise ValueError(fault)


class CallerText(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A caller, as told on standard input."""

    phone_number: str = ""
    name: str = ""
    date_of_birth: str = ""
    consent: str = ""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if it was done, 1 if the cloner refused or cannot be reached, 2 for a wrong call."""
    parser = argparse.ArgumentParser(
        prog="python -m cloner.command", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
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
    chosen = parser.parse_args(arguments)
    try:
        return asyncio.run(_run(chosen, read(Access, os.environ)))
    except EnvironmentInvalid as fault:
        print(f"cloner.command: {fault}", file=sys.stderr)
        return 2
    except msgspec.MsgspecError:
        print('cloner.command: expected a caller on standard input: {"phone_number": ...}', file=sys.stderr)
        return 2
    except OSError as failure:
        where = failure.filename or "standard output"
        print(f"cloner.command: {where}: {failure.strerror}", file=sys.stderr)
        return 2
    except grpc.aio.AioRpcError as failure:
        print(f"cloner.command: {failure.details()}", file=sys.stderr)
        return 1


async def _run(chosen: argparse.Namespace, access: Access) -> int:
    metadata = tuple(("authorization", f"Bearer {token.reveal()}") for token in access.cloner_token[:1])
    options = (("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(access.cloner_target, options=options) as channel:
        stub = CloningServiceStub(channel)
        match chosen.command:
            case "voices":
                page_token = ""
                caller = _caller(_told(), access) if chosen.caller else None
                while True:
                    page = await stub.ListVoices(
                        pb.ListVoicesRequest(page_size=100, page_token=page_token, caller=caller),
                        timeout=SECONDS, metadata=metadata,
                    )  # fmt: skip
                    for voice in page.voices:
                        print(_shown(voice))
                    if not (page_token := page.next_page_token):
                        return 0
            case "forget":
                caller = None if chosen.voice_id else _caller(_told(), access)
                request = pb.ForgetCallerRequest(caller=caller, voice_id=chosen.voice_id)
                answer = await stub.ForgetCaller(request, timeout=SECONDS, metadata=metadata)
                print(f"{answer.voices_deleted} voices deleted, {answer.voices_pending} to be deleted later")
            case "replace":
                sample = chosen.recording.read_bytes()
                told = _told()
                replaced = await stub.ReplaceVoice(
                    pb.ReplaceVoiceRequest(caller=_caller(told, access), sample=sample, consent=told.consent),
                    timeout=SECONDS, metadata=metadata,
                )  # fmt: skip
                print(f"{replaced.voice.voice_id}  {replaced.voice.name}")
            case "enrol":
                # Only here: the other commands start without what it needs.
                from cloner.enrolment import enrol

                return await enrol(
                    stub, metadata, folder=chosen.folder, callers=chosen.callers,
                    report=chosen.report or Path(f"{chosen.callers}.report.csv"), at_once=chosen.at_once,
                    region=access.default_region,
                )  # fmt: skip
    return 0


def _shown(voice: pb.Voice) -> str:
    told = f"{voice.voice_id}  {voice.create_time.ToJsonString()}  {voice.name}"
    return f"{told}  {voice.consent_time.ToJsonString()}  {voice.consent}" if voice.consent else told


def _told() -> CallerText:
    return msgspec.json.decode(sys.stdin.buffer.read(), type=CallerText)


def _caller(told: CallerText, access: Access) -> pb.Caller:
    # Without a country of its own to read it in, a number is left to the cloner, which may have one.
    region = access.default_region
    number = (e164(told.phone_number, region) if region else None) or told.phone_number
    return pb.Caller(name=told.name, date_of_birth=told.date_of_birth, phone_number=number)


if __name__ == "__main__":
    sys.exit(main())
