"""Enrols the lines of a CSV, a few at once; shows and stores the outcome of each."""

import asyncio
import contextlib
import hashlib
import hmac
import os
import signal
import stat
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from precall_client import Caller, Precall, PrecallError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cli import UNREACHED
from cli.enrolment.listing import FileInvalid, Row, read_callers
from cli.enrolment.report import Entry, Report
from environment import LARGEST_SAMPLE_MEBIBYTES, MEBIBYTE, complain, report_done

__all__ = ["enrol"]

SECONDS = 90.0
LARGEST_BYTES = LARGEST_SAMPLE_MEBIBYTES * MEBIBYTE

# Failures that every further line would meet as well.
STOPPING = frozenset(
    {
        "CLONER_UNAVAILABLE",
        "PERMISSION_DENIED",
        "PROVIDER_PLAN_LIMIT",
        "PROVIDER_UNAUTHORIZED",
        "REGISTRY_UNAVAILABLE",
        "UNAUTHENTICATED",
        "VOICE_MONTHLY_LIMIT",
        "VOICE_SLOTS_EXHAUSTED",
    }
)

TOO_LARGE = ("SAMPLE_TOO_LARGE", "The cloner takes no recording of this size.")
# The reason and the sentence for an answer of the cloner that has none of its own.
UNTOLD: dict[str, tuple[str, str]] = {
    "CLONER_UNAVAILABLE": ("CLONER_UNAVAILABLE", f"The cloner cannot be reached: {UNREACHED}"),
    "METHOD_NOT_ALLOWED": (
        "CLONER_UNAVAILABLE",
        "What is at CLONER_TARGET is no cloner of this version.",
    ),
    "UNAUTHENTICATED": ("UNAUTHENTICATED", "CLONER_TOKEN was refused."),
    "PERMISSION_DENIED": ("PERMISSION_DENIED", "CLONER_TOKEN does not allow this."),
    "PROVIDER_TIMEOUT": ("PROVIDER_TIMEOUT", "There was no answer in time."),
    "RATE_LIMITED": ("RATE_LIMITED", "Too much is going on at once. Try again later."),
    "SAMPLE_TOO_LARGE": TOO_LARGE,
}


class RowRefused(Exception):
    """A line that fails. The others go on."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


async def enrol(
    precall: Precall,
    *,
    folder: Path,
    callers: Path,
    report: Path,
    at_once: int,
    region: str | None = None,
) -> int:
    """Enrols; returns 0 if everybody has a voice, 1 if not, 2 for unusable files, 130 after SIGINT."""
    try:
        within = _folder(folder)
        rows = read_callers(callers, region)
        with Report(report) as opened, _shown(len(rows)) as show:
            run = Run(precall, folder=within, report=opened, show=show)
            await run.work_through(rows, at_once)
    except FileInvalid as fault:
        complain(f"precall: {fault}")
        return 2
    lines = [
        f"line {entry.line}  {entry.file}  {entry.reason}  {entry.message}"
        for entry in sorted(run.refused, key=lambda entry: entry.line)
    ]
    left = len(rows) - run.counts.total()
    told = ", ".join(f"{run.counts[outcome]} {outcome}" for outcome in ("enrolled", "known", "refused"))
    report_done("\n".join([*lines, f"{told}, {left} left"]), "precall")
    if run.stopped:
        complain(f"precall: stopped: {run.stopped} Run it again to go on from there.")
    if run.interrupted:
        return 130
    return 1 if left or run.refused else 0


class Run:
    """One run over the rows: a few at once, each recording read when its turn comes."""

    def __init__(
        self,
        precall: Precall,
        *,
        folder: Path,
        report: Report,
        show: Callable[[int, str], None],
    ) -> None:
        self._precall = precall
        self._folder = folder
        self._report = report
        self._show = show
        self._workers: list[asyncio.Task[None]] = []
        self.counts: Counter[str] = Counter()
        self.refused: list[Entry] = []
        self.stopped = ""
        """Why the run has stopped and begins no further row, as a sentence; empty while it goes on."""
        self.interrupted = False

    async def work_through(self, rows: list[Row], at_once: int) -> None:
        """Returns when every row is finished, or the run has stopped and what was under way is finished."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        try:
            waiting = iter(rows)
            async with asyncio.TaskGroup() as group:
                self._workers = [group.create_task(self._work(waiting)) for _ in range(at_once)]
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _work(self, waiting: Iterator[Row]) -> None:
        while not self.stopped and (row := next(waiting, None)) is not None:
            entry, new = await self._outcome(row)
            try:
                if new:
                    self._report.add(entry)
            except OSError as failure:
                self.stopped = f"The report cannot be written ({failure.strerror})."
                return
            self.counts[entry.outcome] += 1
            if entry.outcome == "refused":
                self.refused.append(entry)
            if entry.reason in STOPPING:
                self.stopped = self.stopped or entry.message
            self._show(1, f"line {entry.line}  {entry.file}  {entry.reason or entry.outcome}")

    async def _outcome(self, row: Row) -> tuple[Entry, bool]:
        """The outcome of a row, and whether it must be added to the report."""
        file = "".join(c if c.isprintable() else "?" for c in row.file)
        digest = ""
        try:
            sample, digest = await asyncio.to_thread(_recording, self._folder, row)
            if (before := self._report.done(row.line, file, digest)) is not None:
                return before, False
            caller = Caller(name=row.name, date_of_birth=row.date_of_birth, phone_number=row.phone_number)
            answer = await self._precall.clone_voice(
                caller=caller, sample=sample, consent=row.consent, seconds=SECONDS
            )
        except RowRefused as fault:
            reason, message = fault.reason, str(fault)
        except PrecallError as failure:
            reason, message = _why(failure)
        else:
            outcome: Literal["known", "enrolled"] = "known" if answer.voice_reused else "enrolled"
            voice_id = answer.voice.voice_id
            return Entry(line=row.line, file=file, digest=digest, outcome=outcome, voice_id=voice_id), True
        entry = Entry(
            line=row.line, file=file, digest=digest, outcome="refused", reason=reason, message=message
        )
        return entry, True

    def _interrupt(self) -> None:
        if self.interrupted:
            # A clone that has begun goes on at the cloner, and the next run finds it.
            for worker in self._workers:
                worker.cancel()
            return
        self.interrupted = True
        self.stopped = self.stopped or "Interrupted."
        self._show(0, "finishing what is under way; interrupt once more to give it up")


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileInvalid(f"{folder} is not a folder")
    return Path(os.path.realpath(folder))


def _recording(folder: Path, row: Row) -> tuple[bytes, str]:
    """The recording, and the digest of it and its caller. Raises RowRefused."""
    if row.fault:
        raise RowRefused("FIELD_INVALID", row.fault)
    try:
        path = Path(os.path.realpath(_named(folder, row.file)))
        if not path.is_relative_to(folder):
            raise RowRefused("FIELD_INVALID", "file must stay inside the folder")
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise RowRefused("FILE_UNREADABLE", "this is not a file")
        if found.st_size > LARGEST_BYTES:
            raise RowRefused("SAMPLE_TOO_LARGE", f"the file is larger than {LARGEST_BYTES >> 20} MiB")
        sample = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise RowRefused("FILE_UNREADABLE", "there is no such file in the folder") from None
    except OSError as failure:
        raise RowRefused("FILE_UNREADABLE", f"the file cannot be read ({failure.strerror})") from None
    if not sample:
        raise RowRefused("FILE_UNREADABLE", "the file is empty")
    # The recording is the key: without the recording nobody can try numbers against the report.
    told = f"{row.phone_number}\0{row.name}\0{row.date_of_birth}\0{row.consent}"
    key = hashlib.sha256(sample).digest()
    return sample, hmac.new(key, told.encode(), hashlib.sha256).hexdigest()[:16]


def _named(folder: Path, file: str) -> Path:
    """The file of that name, however its letters are encoded: a Mac writes "é" as two characters."""
    forms = (file, unicodedata.normalize("NFC", file), unicodedata.normalize("NFD", file))
    return next((path for form in forms if (path := folder / form).exists()), folder / file)


def _why(failure: PrecallError) -> tuple[str, str]:
    """The reason and the message of an answer, in one line."""
    if not failure.told:
        return UNTOLD.get(failure.reason, ("INTERNAL", "The cloner failed, and does not say why."))
    if failure.reason == "BODY_TOO_LARGE":
        return TOO_LARGE
    return failure.reason, " ".join(failure.message.split())


@contextlib.contextmanager
def _shown(total: int) -> Iterator[Callable[[int, str], None]]:
    """Shows how many rows are finished: as a bar on a terminal, else as a line for each."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    console = Console(stderr=True, force_terminal=is_terminal, markup=False, emoji=False, soft_wrap=True)
    progress = Progress(
        TextColumn("enrolling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not is_terminal,
    )  # fmt: skip
    with progress:
        task = progress.add_task("", total=total)

        def show(finished: int, text: str) -> None:
            progress.advance(task, finished)
            if progress.disable:
                complain(text)
            elif not finished:
                console.print(text, highlight=False)

        yield show
