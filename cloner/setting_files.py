"""Settings in files that are read again when they change."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

import structlog

from environment import Document, text_of

__all__ = ["WatchedSetting", "watching"]

log = structlog.get_logger()

T = TypeVar("T")

LOOK_SECONDS = 0.5


class WatchedSetting(Generic[T]):
    """A setting that is made from several documents, which are named by their variables.

    `current` holds what `made` returned for the last good content. A change counts once two looks in a row
    have found it, because a file is not written in one moment, and a certificate and its key are two files.
    Content that cannot be used is logged and changes nothing.
    """

    def __init__(self, documents: Mapping[str, Document], made: Callable[[Mapping[str, str]], T]) -> None:
        self._documents = documents
        self._made = made
        texts = {name: each.reveal() for name, each in documents.items()}
        self._known = self._found = (texts, "")
        self.current = made(texts)

    @property
    def may_change(self) -> bool:
        """Whether any of it comes from a file."""
        return any(document.path is not None for document in self._documents.values())

    def look(self) -> None:
        """Reads the files, and takes over a change."""
        before, self._found = self._found, self._read()
        if self._found == self._known or self._found != before:
            return
        self._known = self._found
        texts, fault = self._known
        names = ", ".join(f"{name}_FILE" for name, each in self._documents.items() if each.path is not None)
        if not fault:
            try:
                self.current = self._made(texts)
            except ValueError as unusable:
                fault = "; ".join(str(part) for part in unusable.args)
        if fault:
            log.error("changed file cannot be used, what it said before stays", variable=names, fault=fault)
        else:
            log.info("changed file read again", variable=names)

    def _read(self) -> tuple[dict[str, str], str]:
        """The texts, and why one of them cannot be read, if so."""
        texts: dict[str, str] = {}
        for name, document in self._documents.items():
            try:
                texts[name] = _text(document)
            except ValueError as fault:
                return {}, f"{name}_FILE {fault}"
        return texts, ""


def _text(document: Document) -> str:
    if document.path is None:
        return document.reveal()
    return type(document).read(text_of(document.path, largest=document.largest)).reveal()


@asynccontextmanager
async def watching(*watched: WatchedSetting[Any]) -> AsyncIterator[None]:
    """Looks at the files of all of them for as long as the block lasts."""
    changing = [one for one in watched if one.may_change]

    async def look() -> None:
        while changing:
            await asyncio.sleep(LOOK_SECONDS)
            for one in changing:
                await asyncio.to_thread(one.look)

    task = asyncio.create_task(look())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
