"""Checks whether certificates, keys and authorities, as PEM, can be used together."""

import os
import ssl
from collections.abc import Iterator, Mapping
from typing import Literal

__all__ = ["pem_faults"]


def pem_faults(texts: Mapping[str, str], *, certificate: str, key: str, authorities: str) -> list[str]:
    """All faults of the documents, by the names of their variables and without their texts."""
    return [*_faults(texts, certificate, key, authorities)]


def _faults(texts: Mapping[str, str], certificate: str, key: str, authorities: str) -> Iterator[str]:
    if (certificate in texts) != (key in texts):
        yield f"{certificate} and {key} go together"
    elif certificate in texts:
        match _pair(texts[certificate], texts[key]):
            case "no certificate":
                yield f"{certificate} must hold certificates"
            case "no key":
                yield f"{key} must hold a private key that is not encrypted"
            case "no pair":
                yield f"{key} is not the key of {certificate}"
    if authorities in texts and not _are_certificates(texts[authorities]):
        yield f"{authorities} must hold certificates"


def _pair(certificate: str, key: str) -> Literal["no certificate", "no key", "no pair"] | None:
    """The fault of the pair. OpenSSL reads keys only from files: this file is in memory, never on a disk."""
    if not _are_certificates(certificate):
        return "no certificate"
    descriptor = os.memfd_create("precall", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(f"{certificate}\n{key}\n".encode())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            f"/proc/self/fd/{descriptor}",
            # Without a password OpenSSL would ask on the terminal.
            password="",
        )
    except ssl.SSLError as failure:
        return "no pair" if failure.reason == "KEY_VALUES_MISMATCH" else "no key"
    finally:
        os.close(descriptor)
    return None


def _are_certificates(text: str) -> bool:
    # Between certificates there may be words in any script, of which ssl accepts only ASCII.
    ascii_text = text.encode("ascii", "replace").decode()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=ascii_text)
    except (ssl.SSLError, ValueError):
        return False
    return True
