"""What is in the way of a Postgres, in words that hold no name, value or address."""

import re

__all__ = ["NOT_OURS", "is_bug", "server_problem"]

NOT_OURS = "holds tables of another program: name a database of Precall's own"

# What Postgres or libpq says when a connection is refused, and what an operator should read.
REFUSALS = (
    (r"password authentication failed|no password supplied", "Postgres refuses the user or the password"),
    (r'role ".*" does not exist|Peer authentication|authentication failed', "Postgres refuses the user"),
    (r"is not permitted to log in", "the user may not log in: its role has NOLOGIN"),
    (r'database ".*" does not exist|no such database', "the database does not exist on the server"),
    (r"no pg_hba.conf entry.*(no encryption|SSL off)|SSL(/TLS)? (is )?required|requires SSL",
     "Postgres lets nobody in from here without TLS: add ?sslmode=require, or see its pg_hba.conf"),
    (r"no pg_hba.conf entry", "Postgres lets nobody in from here: see its pg_hba.conf"),
    (r"does not support SSL|SSL was required", "the server does not speak TLS, which the URL asks for"),
    (r"certificate", "the certificate of the server is not one that the URL lets us trust"),
    (r"could not translate host name|name or service not known|failed to resolve|[Nn]o address",
     "the host of the database is not found"),
    (r"[Cc]onnection refused", "nothing listens at the host and port of the database"),
    (r"No such file or directory", "nothing listens at the socket of the database"),
    (r"timeout|timed out", "the host of the database does not answer"),
    (r"too many (clients|connections)|remaining connection slots", "Postgres has no connection left"),
    (r"closed the connection|EOF detected|connection is (lost|closed)",
     "the connection to the database ended"),
    (r"starting up|shutting down|recovery mode", "Postgres is just starting or stopping; try again later"),
    (r"read-only|session is not|not in hot standby mode", "no server of the URL may be written to"),
    (r"invalid .*(value|option)|unrecognized|unsupported startup", "a parameter of the URL is not one"),
    (r"permission denied",
     "the user lacks rights in this database: to make its tables, or to read and write them"),
    (r"not currently accepting connections", "the database lets nobody in: it has ALLOW_CONNECTIONS false"),
    (r"no schema has been selected", "the search_path of the user names no schema that there is"),
    (r"already exists", f"the database {NOT_OURS}"),
)  # fmt: skip

# The classes of SQLSTATE for values, constraints and statements that are wrong.
OURS = ("22", "23", "42")
# Of these, what others cause: rights and tables taken away, and a pooler that keeps prepared statements.
THEIRS = ("42501", "42P01", "42P05")


def server_problem(failure: Exception) -> str:
    """What went wrong at the server. Postgres's own message may hold names, so it is not repeated."""
    text = str(failure)
    for pattern, problem in REFUSALS:
        if re.search(pattern, text):
            return problem
    return "the database cannot be reached, or does not let us work"


def is_bug(sqlstate: str) -> bool:
    """Whether a statement of ours is wrong, to judge by what Postgres answers. Then waiting does not help."""
    return sqlstate.startswith(OURS) and sqlstate not in THEIRS
