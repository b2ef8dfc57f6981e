"""TLS of the cloner's server: a certificate with its key and, with authorities for clients, mutual TLS."""

from collections.abc import Callable, Mapping

import grpc

from environment import Pem, address, pem_faults

__all__ = [
    "ServerCertificate",
    "documents_of",
    "faults_of",
    "health_target",
    "server_certificate_of",
    "server_credentials",
]

CERTIFICATE, KEY, AUTHORITIES = "CLONER_TLS_CERT", "CLONER_TLS_KEY", "CLONER_TLS_CLIENT_CA"

ServerCertificate = grpc.ServerCertificateConfiguration


def documents_of(certificate: Pem | None, key: Pem | None, clients: Pem | None) -> dict[str, Pem]:
    """Those that are set, by the names of their variables."""
    named = {CERTIFICATE: certificate, KEY: key, AUTHORITIES: clients}
    return {name: document for name, document in named.items() if document is not None}


def faults_of(texts: Mapping[str, str]) -> list[str]:
    """What is wrong with PEM, by the names of the variables."""
    if AUTHORITIES in texts and CERTIFICATE not in texts and KEY not in texts:
        return [f"{AUTHORITIES} needs {CERTIFICATE} and {KEY}"]
    return pem_faults(texts, certificate=CERTIFICATE, key=KEY, authorities=AUTHORITIES)


def server_certificate_of(texts: Mapping[str, str]) -> ServerCertificate:
    """The server's certificate and the authorities that it trusts. Raises ValueError with all faults."""
    if faults := faults_of(texts):
        raise ValueError(*faults)
    authorities = texts.get(AUTHORITIES)
    return grpc.ssl_server_certificate_configuration(
        [(texts[KEY].encode(), texts[CERTIFICATE].encode())],
        root_certificates=None if authorities is None else authorities.encode(),
    )


def server_credentials(latest: Callable[[], ServerCertificate], *, mutual: bool) -> grpc.ServerCredentials:
    """Shows every new connection the latest certificate. Existing connections stay as they are.

    With `mutual` a client has to show a certificate, too. gRPC asks for ours on a thread of its own.
    """
    shown = latest()

    def changed() -> ServerCertificate | None:
        nonlocal shown
        before, shown = shown, latest()
        return None if shown is before else shown

    # The type stubs leave out that None means no change.
    return grpc.dynamic_ssl_server_credentials(
        shown,
        changed,  # type: ignore[arg-type]
        require_client_authentication=mutual,
    )


def health_target(host: str, port: int) -> str:
    """The address where a cloner serves its health, and nothing else, to its own machine.

    It is served in plain text, so that the health check on the machine needs no client certificate, and apart
    from the port, so that nobody's connections to it keep the health check out.
    """
    return f"unix-abstract:precall-health-{address(host, port)}"
