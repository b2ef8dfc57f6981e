"""Checks whether certificates, keys and authorities, as PEM, can be used together."""

import os
import ssl
from collections.abc import Mapping

__all__ = ["pem_faults"]


def pem_faults(texts: Mapping[str, str], *, certificate: str, key: str, authorities: str) -> list[str]:
    """All faults of the documents, by the names of their variables and without their texts."""
    faults = []
    if (certificate in texts) != (key in texts):
        faults.append(f"{certificate} and {key} go together")
    elif certificate in texts and not _are_certificates(texts[certificate]):
        faults.append(f"{certificate} must hold certificates")
    elif certificate in texts:
        try:
            _load_pair(texts[certificate], texts[key])
        except ssl.SSLError as failure:
            if failure.reason == "KEY_VALUES_MISMATCH":
                faults.append(f"{key} is not the key of {certificate}")
            else:
                faults.append(f"{key} must hold a private key that is not encrypted")
    if authorities in texts and not _are_certificates(texts[authorities]):
        faults.append(f"{authorities} must hold certificates")
    return faults


def _load_pair(certificate: str, key: str) -> None:
    """Raises SSLError. OpenSSL reads keys only from files: this file is in memory, never on a disk."""
    descriptor = os.memfd_create("precall", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(f"{certificate}\n{key}\n".encode())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            f"/proc/self/fd/{descriptor}",
            # Without a password OpenSSL would ask on the terminal.
            password="",
        )


def _are_certificates(text: str) -> bool:
    # Between certificates there may be words in any script, of which ssl accepts only ASCII.
    ascii_text = text.encode("ascii", "replace").decode()
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=ascii_text)
    except (ssl.SSLError, ValueError):
        return False
    return True
