"""How often something may happen, and where that is counted."""

import re
import urllib.parse
from typing import Self

from environment.secret import Secret

__all__ = ["CountStorage", "Rate"]

RATE = re.compile(r"[1-9][0-9]{0,6} */ *([1-9][0-9]{0,3} *)?(second|minute|hour|day)s?", re.IGNORECASE)
OFF = "off"

IN_MEMORY = "memory://"
SERVERS = {"redis", "valkey", "rediss", "valkeys"}
WITH_TLS = {"rediss", "valkeys"}
DATABASE = re.compile(r"/?|/[0-9]{1,4}")
FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}


class Rate(str):
    """So many in so long, such as `100/minute` or `5/10 seconds`, or `off`."""

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises ValueError, which says what is expected."""
        if text.lower() == OFF:
            return cls(OFF)
        if not RATE.fullmatch(text):
            raise ValueError("must be a rate such as 100/minute or 5/10 seconds, or off")
        return cls(text.lower())

    @property
    def is_off(self) -> bool:
        """Whether there is no limit."""
        return self == OFF


class CountStorage(Secret):
    """Where deliveries are counted: `memory://`, or the URL of a Redis or Valkey server.

    The URL may hold a password.
    """

    __slots__ = ()

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises ValueError, which says what is expected."""
        if text != IN_MEMORY and not _is_server(text):
            raise ValueError(
                "must be memory://, unix:///path/to/socket, or redis://, rediss://, valkey:// or valkeys:// "
                "with [user:password@]host[:port][/database]; with TLS also ?ssl_ca_certs=/path"
            )
        return super().read(text)

    @property
    def is_in_memory(self) -> bool:
        """Whether each process counts by itself."""
        return self.reveal() == IN_MEMORY


def _is_server(text: str) -> bool:
    try:
        url = urllib.parse.urlsplit(text)
        port = url.port
        query = urllib.parse.parse_qsl(url.query, strict_parsing=True) if url.query else []
    except ValueError:
        return False
    if "#" in text or not re.fullmatch(r"[!-~]+", text):
        return False
    if url.scheme == "unix":
        return not url.netloc and len(url.path) > 1 and not query
    return (
        url.scheme in SERVERS
        and bool(url.hostname)
        and port != 0
        and DATABASE.fullmatch(url.path) is not None
        and (not query or url.scheme in WITH_TLS)
        and all(name in FILES and value.startswith("/") for name, value in query)
    )
