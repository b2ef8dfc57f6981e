"""SQL as plain text, translated once for both databases."""

import re

import msgspec

__all__ = ["AT_ONCE", "Statement", "assignments", "columns", "of_some", "parameters"]

# How many rows a transaction that no call waits for changes: others wait for it, on SQLite all who write.
AT_ONCE = 1_000
# A row is locked on Postgres alone: on SQLite, whoever writes is alone.
LOCK = re.compile(r"\s+FOR UPDATE(?: SKIP LOCKED)?\b")
LIST = re.compile(r":([a-z_]+)\[\]")
PARAMETER = re.compile(r"(?<![:\w]):([a-z_]+)")


class Statement:
    """One statement with `:name` parameters, in the words that SQLite and Postgres share.

    `FOR UPDATE` is left out for SQLite. `IN (:name[])` takes a list, which is passed as JSON.
    """

    __slots__ = ("postgres", "sqlite")

    def __init__(self, text: str) -> None:
        self.sqlite = LOCK.sub("", LIST.sub(r"SELECT value FROM json_each(:\1)", text))
        listed = LIST.sub(r"SELECT json_array_elements_text(CAST(:\1 AS json))", text)
        translated = PARAMETER.sub(r"%(\1)s", listed.replace("%", "%%"))
        # psycopg takes bytes for a text that holds nothing from outside.
        self.postgres = translated.encode()

    def __repr__(self) -> str:
        return f"Statement({self.sqlite!r})"


def of_some(change: str, *, table: str, key: str, condition: str, most: int = AT_ONCE) -> str:
    """The change, of so many rows of the table at most, and of none that another transaction is changing.

    Which ones is found out first, and once: Postgres may ask a condition that stands in the change itself
    again for each row, a thousand times what it takes, where it takes a table for smaller than it is.
    """
    chosen = f"SELECT {key} FROM {table} WHERE {condition} LIMIT {most} FOR UPDATE SKIP LOCKED"
    once = f"WITH chosen AS MATERIALIZED ({chosen}) SELECT {key} FROM chosen"
    return f"{change} WHERE ({key}) IN ({once})"


def columns(kind: type[msgspec.Struct], **computed: str) -> str:
    """The columns of a row, named and ordered as its fields are; what is `computed` is no column."""
    return ", ".join(
        f"{computed[name]} AS {name}" if name in computed else name for name in kind.__struct_fields__
    )


def parameters(kind: type[msgspec.Struct]) -> str:
    """The parameters that fill a row, in the order of its columns."""
    return ", ".join(f":{name}" for name in kind.__struct_fields__)


def assignments(kind: type[msgspec.Struct], *, key: str, prefix: str = ":") -> str:
    """Sets every column of a row but its key to what has its name behind the prefix: to its parameter."""
    return ", ".join(f"{name} = {prefix}{name}" for name in kind.__struct_fields__ if name != key)
