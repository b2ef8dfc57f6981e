"""Pages of lists: how large they are, and the tokens by which the next one is asked for."""

import base64
import binascii
import hmac
import struct

from cloner.rpc.fields import Fields
from cloner.voices.callers import Identities

__all__ = ["MOST", "Pages"]

USUAL = 50
MOST = 100
LONGEST_TOKEN = 512
SEAL = 32
# From the letters that URLs may hold to those of base64, which no token of ours holds. The module `base64` is
# lenient: it takes both, and Python 3.15 warns of that.
PLAIN = str.maketrans("-_+/", "+/  ")


class Pages:
    """The pages of one list under one filter; a token is valid only for these.

    A token is opaque: it holds the place where the next page begins and a proof that we issued it for this
    list.
    """

    def __init__(self, identities: Identities, fields: Fields, *filters: str) -> None:
        self._identities = identities
        self._fields = fields
        self._filters = filters

    def size(self, asked: int) -> int:
        """How many entries a page holds at most. A number that is too large is reduced."""
        if asked < 0:
            self._fields.wrong("page_size", "may not be negative")
        return min(asked, MOST) or USUAL

    def position_of(self, token: str) -> tuple[float, str] | None:
        """Where a page begins: after this time and name. None for the first page."""
        if not token:
            return None
        try:
            if len(token) <= LONGEST_TOKEN:
                padded = token + "=" * (-len(token) % 4)
                raw = binascii.a2b_base64(padded.translate(PLAIN), strict_mode=True)
                seal, (at,), name = raw[:SEAL], struct.unpack(">d", raw[SEAL : SEAL + 8]), raw[SEAL + 8 :]
                position = (at, name.decode())
                if hmac.compare_digest(seal, self._seal(*position)):
                    return position
        except (binascii.Error, ValueError, struct.error):
            pass
        self._fields.wrong("page_token", "is not one that this list returned for this filter")
        return None

    def token(self, at: float, name: str) -> str:
        """The token of the page that begins after that."""
        raw = self._seal(at, name) + struct.pack(">d", at) + name.encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    def _seal(self, at: float, name: str) -> bytes:
        return self._identities.page_seal(*self._filters, at.hex(), name).encode()
