"""SQL as plain text, translated once for both databases."""

import re

__all__ = ["Statement"]

# A row is locked on Postgres alone: on SQLite, whoever writes is alone.
LOCK = re.compile(r"\s+FOR UPDATE(?: SKIP LOCKED)?\b")
PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """One statement with `:name` parameters, in the words that SQLite and Postgres share.

    `FOR UPDATE` is left out for SQLite. Where the two have no words in common, `postgres` is its own text.
    """

    __slots__ = ("postgres", "sqlite")

    def __init__(self, text: str, *, postgres: str | None = None) -> None:
        self.sqlite = LOCK.sub("", text)
        translated = PARAMETER.sub(r"%(\1)s", (postgres or text).replace("%", "%%"))
        # psycopg takes bytes for a text that holds nothing from outside.
        self.postgres = translated.encode()

    def __repr__(self) -> str:
        return f"Statement({self.sqlite!r})"
