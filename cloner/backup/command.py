"""`precall-registry`: keeps the registry of voices in a file, puts it back, and brings it up to date.

    precall-registry backup FILE      while cloners are at it; FILE must not be there yet
    precall-registry check FILE       whether a back-up is whole, and what it holds
    precall-registry restore FILE     while no cloner is; only where there is no registry yet,
                                      or with --replace
    precall-registry migrate          make the tables, or bring them up to date, as the first cloner of
                                      a new release would when it starts; cloners may be at it

DATABASE_URL says where the registry is, as it does for the cloner (sqlite:///precall.sqlite3). A
back-up of either database can be restored into the other. "-" is standard output or standard input.

A back-up holds what the registry holds, names to greet by among it, and the key that is kept beside a
SQLite file, with which phone numbers can be found out: keep it as you keep the registry. A key that is
told by CALLER_HASH_KEY is not in it; one that is set is held against the key of the back-up. No back-up is
made of a registry whose key is neither told nor kept beside it, since it would recognise nobody.

Exit status: 0 if it was done, 1 if it cannot be done as things are, 2 for what cannot be right: a
setting, a file that is no whole back-up, anything of a release that this one does not know. What was done
is 0, also if standard output cannot be written.
"""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, TextIO

import msgspec

from cloner.backup import archive
from cloner.database_url import DEFAULT_URL, address_problem, is_sqlite
from cloner.private_file import publishing
from cloner.registry import RegistryNotOpened, RegistryOfOtherRelease
from cloner.registry.opening import migrated
from cloner.registry.restoring import restoring
from cloner.registry.snapshot import RowsInvalid, Snapshot, assembled, snapshot
from cloner.voices.hash_key import KeyUnavailable, check_of, file_beside, found_beside, missing, put
from environment import EnvironmentInvalid, Key, SecretUrl, complain, drop_output, parsing, read, report_done
from telemetry import logs

__all__ = ["main", "reading"]

PROGRAM = "precall-registry"


class BackupSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the registry is, from the cloner's own variables."""

    database_url: SecretUrl = SecretUrl(DEFAULT_URL)
    caller_hash_key: Key | None = None
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        if problem := address_problem(self.database_url):
            raise ValueError(f"DATABASE_URL: {problem}")

    @property
    def key(self) -> bytes | None:
        """The key of the hashes, if the environment holds it."""
        return self.caller_hash_key.reveal().encode() if self.caller_hash_key else None


class KeyMissing(Exception):
    """Without its key the registry would recognise nobody. The text says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if it was done, 1 if it cannot be as things are, 2 for what cannot be right."""
    with parsing():
        chosen = _parser().parse_args(arguments)
    # A line of the log that cannot be written is no failure, and no reason for a traceback.
    logging.raiseExceptions = False
    # SIGTERM undoes what was begun, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        settings = read(BackupSettings, os.environ)
        logs.configure(PROGRAM, level=settings.log_level, form=settings.log_format)
        match chosen.command:
            case "backup":
                _back_up(settings, chosen.file)
            case "check":
                with reading(chosen.file) as (heading, source), _telling_output():
                    content = f"{_what(source)}, {_phrase_of_key(heading)}"
                    print(f"{chosen.file} is whole: {content}", flush=True)
            case "restore":
                _restore(settings, chosen)
            case "migrate":
                _migrate(settings)
    except KeyboardInterrupt:
        return 130
    except (EnvironmentInvalid, KeyMissing, RegistryOfOtherRelease) as fault:
        return _refused(str(fault), 2)
    except archive.BackupInvalid as fault:
        return _refused(f"{chosen.file} {fault}", 2)
    except (RegistryNotOpened, KeyUnavailable) as failure:
        return _refused(str(failure), 1)
    except OSError as failure:
        return _refused(f"{failure.filename or chosen.file}: {failure.strerror}", 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, told in (
        ("backup", "write the registry to a new file"),
        ("check", "read a back-up, and change nothing"),
        ("restore", "write a back-up into the database"),
    ):
        commands.add_parser(name, help=told).add_argument("file", metavar="FILE")
    migrate = commands.add_parser("migrate", help="make the tables of the registry, or bring them up to date")
    migrate.set_defaults(file="DATABASE_URL")
    restore = commands.choices["restore"]
    restore.add_argument(
        "--replace", action="store_true", help="also where there is a registry, which then is no more"
    )
    restore.add_argument(
        "--key-file", type=Path, help="where the key goes that the back-up holds, if not beside a SQLite file"
    )
    return parser


def _back_up(settings: BackupSettings, name: str) -> None:
    with _made(name) as file, snapshot(settings.database_url) as source:
        kept, check = _keys(settings, source.key_check)
        heading = archive.Heading(
            precall_registry_backup=archive.FORM,
            made_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            database="sqlite" if is_sqlite(settings.database_url) else "postgres",
            revision=source.revision,
            deployment=source.name,
            key=kept.decode() if kept else None,
            key_check=check,
        )
        archive.write(file, heading, source)
        content = _what(source)
    done = f"{name} holds {content}, {_phrase_of_key(heading)}"
    if name == "-":  # standard output holds nothing but the back-up
        complain(done)
    else:
        report_done(done, PROGRAM)


def _keys(settings: BackupSettings, known: str | None) -> tuple[bytes | None, str | None]:
    """The key that goes into a back-up, if any, and the text by which the key of the registry is recognised.

    The registry has `known` that text since it had a key. Raises KeyMissing if nobody tells that key, without
    which the back-up would recognise nobody, and KeyUnavailable.
    """
    told, url = settings.key, settings.database_url
    if told is not None and known in (None, check_of(told)):
        return None, check_of(told)
    sqlite = is_sqlite(url)
    beside = found_beside(url) if sqlite else None
    if beside is not None and known in (None, check_of(beside)):
        return beside, check_of(beside)
    if known is None:
        return None, None
    if told is not None:
        raise KeyMissing(
            "CALLER_HASH_KEY is not the key by which the registry knows its callers: set it to that one"
        )
    if not sqlite:
        raise KeyMissing("CALLER_HASH_KEY is required: the key by which the registry knows its callers")
    if beside is not None:
        raise KeyMissing(
            f"{file_beside(url)} is not the key by which the registry knows its callers: put that one back,"
            " or set CALLER_HASH_KEY to it"
        )
    raise KeyMissing(missing(url))


def _restore(settings: BackupSettings, chosen: argparse.Namespace) -> None:
    url = settings.database_url
    with reading(chosen.file) as (heading, source):
        place = _place_of_key(settings, heading, chosen)
        with restoring(url, source, key_check=heading.key_check, replace=chosen.replace) as restored:
            # Written before the commit: no cloner starts on a registry without its key.
            if place is not None and heading.key is not None and not place.exists():
                put(place, heading.key.encode(), replace=False)
                place = None
        if place is not None and heading.key is not None:
            put(place, heading.key.encode(), replace=True)
        report_done(f"restored {_what(source)}", PROGRAM)
        if restored.replaced:
            given_up = f"{restored.given_up} voices of the registry that was there"
            report_done(f"{given_up} are deleted by the next cloner", PROGRAM)
        if restored.looked_for:
            looked_for = f"{restored.looked_for} that were being made"
            report_done(f"{looked_for} are looked for, and deleted where ElevenLabs has made them", PROGRAM)


def _migrate(settings: BackupSettings) -> None:
    done = migrated(settings.database_url)
    if done.before == done.after:
        report_done(f"the registry is up to date, at revision {done.after}", PROGRAM)
    elif done.before is None:
        report_done(f"the registry was made, at revision {done.after}", PROGRAM)
    else:
        report_done(f"the registry was brought from revision {done.before} to {done.after}", PROGRAM)


def _place_of_key(
    settings: BackupSettings, heading: archive.Heading, chosen: argparse.Namespace
) -> Path | None:
    """The file to write the key of the back-up to; None if it has the key, or the environment holds it.

    Raises KeyMissing, or KeyUnavailable if another key would be overwritten.
    """
    sqlite = is_sqlite(settings.database_url)
    if settings.key is not None:
        if heading.key_check not in (None, check_of(settings.key)):
            raise KeyMissing("CALLER_HASH_KEY is not the key of the back-up, by which its callers are known")
        return None
    if heading.key is None:
        beside = found_beside(settings.database_url) if sqlite else None
        if heading.key_check is None and sqlite:
            return None
        if beside is None or heading.key_check != check_of(beside):
            raise KeyMissing("CALLER_HASH_KEY is required: the back-up does not hold the key of its callers")
        return None
    place: Path | None = chosen.key_file or (file_beside(settings.database_url) if sqlite else None)
    if place is None:
        raise KeyMissing(
            "CALLER_HASH_KEY is required, or --key-file FILE, where the key goes that the back-up holds"
        )
    if place.exists():
        if place.read_bytes().strip() == heading.key.encode():
            return None
        if not chosen.replace:
            raise KeyUnavailable(f"{place} is another key than the back-up's, which --replace replaces")
    return place


@contextlib.contextmanager
def _made(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        with _telling_output():
            output = _bytes(sys.stdout)
            yield output
            output.flush()
        return
    with publishing(Path(name)) as file:
        yield file


@contextlib.contextmanager
def reading(name: str) -> Iterator[tuple[archive.Heading, Snapshot]]:
    """A back-up that was read to its end and found whole. Raises BackupInvalid."""
    with contextlib.ExitStack() as stack:
        file = (
            _bytes(sys.stdin, "standard input") if name == "-" else stack.enter_context(Path(name).open("rb"))
        )
        heading, line = archive.heading_of(file)
        try:
            source = stack.enter_context(assembled(heading.revision, archive.parts(file, line)))
        except RowsInvalid:
            raise archive.BackupInvalid(archive.DAMAGED) from None
        yield heading, source


def _what(source: Snapshot) -> str:
    voices, calls, agents = map(source.count, ("voices", "calls", "agents"))
    return f"{voices} voices, {calls} calls and {agents} agents of deployment {source.name}"


def _phrase_of_key(heading: archive.Heading) -> str:
    if heading.key is not None:
        return "with its key"
    return "without its key, which is CALLER_HASH_KEY"


def _bytes(stream: TextIO | None, name: str | None = None) -> IO[bytes]:
    if stream is None:  # the process was begun with it closed
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), name)
    return stream.buffer


@contextlib.contextmanager
def _telling_output() -> Iterator[None]:
    """Names standard output as what an OSError is about, unless that names a file."""
    try:
        yield
    except OSError as failure:
        if not failure.filename:
            drop_output()
            failure.filename = "standard output"
        raise


def _refused(reason: str, status: int) -> int:
    complain(f"{PROGRAM}: {reason}")
    return status
