"""How many files and connections this process may have open at once."""

import resource

import structlog

__all__ = ["connections_allowed", "too_few_files"]

log = structlog.get_logger()

# With fewer a process may not even be able to import what its first answer needs, or gRPC ends it.
LEAST = 64


def too_few_files() -> str | None:
    """What to say if this process may open too few files to serve at all; None if it may open enough."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= LEAST:
        return None
    return f"may open only {hard} files at once, and needs {LEAST} at least: raise the limit (ulimit -n)"


def connections_allowed(most: int, *, reserved: int) -> int:
    """How many connections of clients to take: `most`, or fewer if the system allows no more open files.

    The limit of open files is raised first, so that `reserved` ones are left for everything else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + reserved
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return most
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return most
    fewer = max(1, allowed - reserved)
    log.warning("fewer connections than set, raise the limit of open files", most=fewer, open_files=allowed)
    return fewer
