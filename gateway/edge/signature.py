"""Checks who signed a body, while it arrives. Knows no web framework.

    ElevenLabs-Signature: t=<unix seconds>,v0=<64 hex digits>
    v0 = HMAC-SHA256(secret, t + "." + body)

A SignatureError is always the sender's fault, and nothing was done for them:

    SIGNATURE_MISSING     no header
    SIGNATURE_MALFORMED   not of the form above, too long, or given twice
    SIGNATURE_EXPIRED     older than 30 minutes, or more than 5 minutes ahead
    SIGNATURE_MISMATCH    the body was not signed with any of our secrets
"""

import hmac
import re
from collections.abc import Sequence
from typing import Literal, final

__all__ = ["SignatureError", "VerifiedBody", "Verifier"]

OLDEST_SECONDS = 1800
NEWEST_SECONDS = 300
MAX_HEADER = 2048
MAX_SIGNATURES = 8

# `\d` and `int()` would accept digits of other scripts, and `int()` raises for a number that is long enough.
STAMP = re.compile(r"[0-9]{1,12}")
SIGNATURE = re.compile(r"[0-9a-f]{64}")
# Smaller pieces are joined up to this size, as each piece costs more than its bytes.
PIECE_BYTES = 65_536

Reason = Literal["SIGNATURE_MISSING", "SIGNATURE_MALFORMED", "SIGNATURE_EXPIRED", "SIGNATURE_MISMATCH"]

_SEAL = object()


class SignatureError(Exception):
    """The sender does not know our secret, or the signature is too old or too new."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


@final
class VerifiedBody:
    """The bytes that a known sender signed, or the first of them, as many as were kept.

    Only `Verifier.finish` makes one.
    """

    __slots__ = ("content", "whole")

    def __init__(self, content: bytes, seal: object, *, whole: bool = True) -> None:
        if seal is not _SEAL:
            raise TypeError("a body is verified by Verifier.finish alone")
        self.content = content
        self.whole = whole

    def __repr__(self) -> str:
        return f"VerifiedBody({len(self.content)} bytes)"


class Verifier:
    """Takes the body piece by piece, and checks its signature at the end.

    The constructor raises SignatureError if the header alone is wrong, so that the body need not be read.
    """

    def __init__(self, header: Sequence[str], secrets: Sequence[bytes], *, now: float) -> None:
        stamp, self._signatures = _parts(header)
        age = now - int(stamp)
        if age > OLDEST_SECONDS or age < -NEWEST_SECONDS:
            raise SignatureError("SIGNATURE_EXPIRED")
        self._digests = [hmac.new(secret, f"{stamp}.".encode(), "sha256") for secret in secrets]
        # Kept in pieces: one growing buffer would leave holes of its former sizes in memory.
        self._pieces: list[bytes] = []
        self._last = bytearray()
        self._kept = 0
        self._most: int | None = None
        self._whole = True

    @property
    def kept(self) -> int:
        """How many bytes of the body are kept."""
        return self._kept

    def feed(self, chunk: bytes) -> None:
        """Takes the next bytes of the body."""
        for digest in self._digests:
            digest.update(chunk)
        if self._most is not None and len(chunk) > self._most - self._kept:
            self._whole = False
            chunk = chunk[: self._most - self._kept]
        self._keep(chunk)

    def first(self, size: int) -> bytes:
        """The first of the bytes that are kept, while it is not known yet who signed them."""
        found: list[memoryview] = []
        for piece in (*self._pieces, bytes(self._last)):
            found.append(memoryview(piece)[:size])
            size -= len(found[-1])
            if not size:
                break
        return b"".join(found)

    def keep_first(self, size: int) -> None:
        """Drops all but the first `size` bytes. Later bytes are checked, but not kept."""
        self._most = size
        if self._kept > size:
            self._whole = False
            first = self.first(size)
            self._pieces, self._last, self._kept = [], bytearray(), 0
            self._keep(first)

    def finish(self) -> VerifiedBody:
        """The bytes that were kept, which are handed over.

        Raises SignatureError if no signature fits the whole body under any secret.
        """
        fits = False
        for digest in self._digests:
            expected = digest.hexdigest().encode()
            for signature in self._signatures:
                # Every pair is compared, so that the time tells nothing.
                fits |= hmac.compare_digest(expected, signature)
        if not fits:
            raise SignatureError("SIGNATURE_MISMATCH")
        content = b"".join([*self._pieces, self._last])
        self._pieces, self._last, self._kept = [], bytearray(), 0
        return VerifiedBody(content, _SEAL, whole=self._whole)

    def _keep(self, chunk: bytes) -> None:
        self._kept += len(chunk)
        if not self._last and len(chunk) >= PIECE_BYTES:
            self._pieces.append(chunk)
            return
        self._last += chunk
        if len(self._last) >= PIECE_BYTES:
            self._pieces.append(bytes(self._last))
            self._last = bytearray()


def _parts(header: Sequence[str]) -> tuple[str, list[bytes]]:
    """The signed time as it was written, and the signatures."""
    if not header:
        raise SignatureError("SIGNATURE_MISSING")
    if len(header) > 1 or len(header[0]) > MAX_HEADER:
        raise SignatureError("SIGNATURE_MALFORMED")
    stamps, signatures = [], []
    for part in header[0].split(","):
        name, _, value = part.strip(" \t").partition("=")
        if name == "t":
            stamps.append(value)
        elif name == "v0" and SIGNATURE.fullmatch(value):
            signatures.append(value.encode())
    if len(stamps) != 1 or not STAMP.fullmatch(stamps[0]):
        raise SignatureError("SIGNATURE_MALFORMED")
    if not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise SignatureError("SIGNATURE_MALFORMED")
    return stamps[0], signatures
