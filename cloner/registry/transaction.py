"""What a transaction may do, and what can go wrong with it."""

from enum import IntEnum
from typing import Any, Protocol

from cloner.registry.statement import Statement

__all__ = [
    "Lock",
    "RegistryBusy",
    "RegistryNotOpened",
    "RegistryOfOtherRelease",
    "RegistryUnavailable",
    "Row",
    "TextNotStorable",
    "Transaction",
    "checked",
]

Row = tuple[Any, ...]


class Lock(IntEnum):
    """What is locked: the calls at an agent, by its id, or the consents of a person, by their hash."""

    AGENT = 0
    PERSON = 1


class Transaction(Protocol):
    """A transaction that is under way, within one function that runs from its begin to its commit.

    If it is in conflict with another transaction, the function runs again from its start, in a new one.
    """

    def lock(self, kind: Lock, name: str) -> None:
        """Lets no other transaction have this lock before the end of this one. SQLite has one writer."""

    def one(self, statement: Statement, /, **values: object) -> Row | None:
        """The only row, if there is one."""

    def all(self, statement: Statement, /, **values: object) -> list[Row]:
        """Every row."""

    def run(self, statement: Statement, /, **values: object) -> int:
        """How many rows were changed."""


class RegistryUnavailable(Exception):
    """The database cannot be reached, does not let us work, or did not answer in time.

    A statement of ours that is wrong is a bug, which the driver's own exception tells.
    """

    reason = "REGISTRY_UNAVAILABLE"

    def __init__(self, message: str = "The registry of voices cannot be reached; try again later.") -> None:
        super().__init__(message)


class RegistryBusy(RegistryUnavailable):
    """The database answers, but more is asked of it than it can answer in time."""

    reason = "RATE_LIMITED"

    def __init__(self) -> None:
        super().__init__("Too much is going on at once; try again in a moment.")


class RegistryNotOpened(RegistryUnavailable):
    """The database cannot be opened at start. The text says why, in one line without secrets."""


class RegistryOfOtherRelease(RegistryNotOpened):
    """The database was migrated by another release than this one."""


class TextNotStorable(Exception):
    """A text holds what a database cannot: NUL, or half of a character. Nothing was changed."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} holds a character that cannot be stored.")


def checked(values: dict[str, object]) -> dict[str, object]:
    """The same values. Raises TextNotStorable, alike for both databases."""
    for name, value in values.items():
        if isinstance(value, str):
            if "\0" in value:
                raise TextNotStorable(name)
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError:
                    # Not as the cause: it holds the text.
                    raise TextNotStorable(name) from None
    return values
