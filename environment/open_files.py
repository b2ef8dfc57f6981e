"""How many files and connections this process may have open at once."""

import resource

import structlog

__all__ = ["connections_allowed"]

log = structlog.get_logger()


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
