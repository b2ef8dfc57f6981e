"""TLS at the cloner's door: a certificate with its key and, with authorities for clients, mutual TLS."""

import os
import ssl
from collections.abc import Callable, Iterator, Mapping

import grpc

from environment import Pem, address

__all__ = ["Identity", "documents_of", "health_target", "identity_of", "server_credentials"]

Identity = grpc.ServerCertificateConfiguration


def documents_of(certificate: Pem | None, key: Pem | None, clients: Pem | None) -> dict[str, Pem]:
    """Those that are set, by the names of their variables. Raises ValueError where one of them is missing."""
    if (certificate is None) != (key is None):
        raise ValueError("CLONER_TLS_CERT and CLONER_TLS_KEY go together")
    if clients is not None and certificate is None:
        raise ValueError("CLONER_TLS_CLIENT_CA needs CLONER_TLS_CERT and CLONER_TLS_KEY")
    named = {"CLONER_TLS_CERT": certificate, "CLONER_TLS_KEY": key, "CLONER_TLS_CLIENT_CA": clients}
    return {name: document for name, document in named.items() if document is not None}


def identity_of(texts: Mapping[str, str]) -> Identity:
    """What the server shows of itself and whose clients it believes, from PEM by the names of the variables.

    Raises ValueError, which names every variable at fault.
    """
    certificate, key = texts["CLONER_TLS_CERT"], texts["CLONER_TLS_KEY"]
    authorities = texts.get("CLONER_TLS_CLIENT_CA")
    faults = list(_faults(certificate, key, authorities))
    if faults:
        raise ValueError(*faults)
    return grpc.ssl_server_certificate_configuration(
        [(key.encode(), certificate.encode())],
        root_certificates=None if authorities is None else authorities.encode(),
    )


def server_credentials(latest: Callable[[], Identity], *, mutual: bool) -> grpc.ServerCredentials:
    """Shows every new connection the latest identity. Connections that there are stay as they are.

    With `mutual` a client has to show a certificate, too. gRPC asks for the identity on a thread of its own.
    """
    shown = latest()

    def changed() -> Identity | None:
        nonlocal shown
        before, shown = shown, latest()
        return None if shown is before else shown

    # The type stubs leave out that None is no change.
    return grpc.dynamic_ssl_server_credentials(
        shown,
        changed,  # type: ignore[arg-type]
        require_client_authentication=mutual,
    )


def health_target(host: str, port: int) -> str:
    """Where a cloner that speaks TLS at this address tells its health, and no more, to its own machine.

    In plain text: the health check on the machine need not have a certificate of a client.
    """
    return f"unix-abstract:precall-health-{address(host, port)}"


def _faults(certificate: str, key: str, authorities: str | None) -> Iterator[str]:
    if not _are_certificates(certificate):
        yield "CLONER_TLS_CERT must hold certificates"
    elif (problem := _problem_of_key(certificate, key)) is not None:
        yield problem
    if authorities is not None and not _are_certificates(authorities):
        yield "CLONER_TLS_CLIENT_CA must hold certificates"


def _are_certificates(text: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        return False
    return True


def _problem_of_key(certificate: str, key: str) -> str | None:
    """OpenSSL reads keys from files alone: this one is in memory, and never on a disk."""
    descriptor = os.memfd_create("precall", os.MFD_CLOEXEC)
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(f"{certificate}\n{key}\n".encode())
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            # Without a password OpenSSL would ask for it on the terminal.
            f"/proc/self/fd/{descriptor}", password=""
        )  # fmt: skip
    except ssl.SSLError as failure:
        if failure.reason == "KEY_VALUES_MISMATCH":
            return "CLONER_TLS_KEY is not the key of CLONER_TLS_CERT"
        return "CLONER_TLS_KEY must hold a private key that is not encrypted"
    finally:
        os.close(descriptor)
    return None
