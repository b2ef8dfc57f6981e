"""TLS between gateway and cloner, over real sockets."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server

import environment
from environment import EnvironmentInvalid, Pem
from gateway.settings import Settings

SECRET = "test-webhook-secret-0001"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whom both sides believe."""
    return trustme.CA()


def pem(issued: trustme.LeafCert) -> tuple[str, str]:
    """A certificate and its key."""
    chain = b"".join(each.bytes() for each in issued.cert_chain_pems)
    return chain.decode(), issued.private_key_pem.bytes().decode()


@asynccontextmanager
async def secured(cloner: Any, authority: trustme.CA) -> AsyncIterator[str]:
    """A cloner that wants to see a certificate; its health check is there, too."""
    chain, key = pem(authority.issue_cert("localhost"))
    server = grpc.aio.server()
    add_CloningServiceServicer_to_server(cloner, server)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set("precall.v1.CloningService", health_pb2.HealthCheckResponse.SERVING)
    credentials = grpc.ssl_server_credentials(
        [(key.encode(), chain.encode())], authority.cert_pem.bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"localhost:{port}"
    await server.stop(0)


async def test_mutual_tls(
    gateway: Any, cloner: Any, client: Any, deliver: Any, document: Any, authority: trustme.CA, tmp_path: Path
) -> None:
    """Deliveries and the readiness check go over TLS, with certificates from files or from variables."""
    chain, key = pem(authority.issue_cert("gateway"))
    (tmp_path / "key").write_text(key)
    tls = {
        "cloner_tls_ca": Pem(authority.cert_pem.bytes().decode()),
        "cloner_tls_client_cert": Pem(chain),
        "cloner_tls_client_key": Pem(key, tmp_path / "key"),
    }
    async with secured(cloner, authority) as target:
        url = await gateway(cloner_target=target, **tls)
        assert 200 == (await deliver(url, document())).status_code
        assert 200 == (await client.get(f"{url}/health/ready")).status_code

        for missing in ({}, {"cloner_tls_ca": tls["cloner_tls_ca"]}):
            url = await gateway(cloner_target=target, **missing)
            answer = await deliver(url, document())
            assert (503, "CLONER_UNAVAILABLE") == (answer.status_code, answer.json()["reason"])
            assert 503 == (await client.get(f"{url}/health/ready")).status_code

    assert 1 == len(cloner.asked)


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (lambda chain, _: {"CLIENT_CERT": chain}, "CLONER_TLS_CLIENT_CERT and CLONER_TLS_CLIENT_KEY go together"),
        (lambda _, key: {"CLIENT_CERT": key, "CLIENT_KEY": key}, "CLONER_TLS_CLIENT_CERT must hold certificates"),
        (lambda chain, _: {"CLIENT_CERT": chain, "CLIENT_KEY": chain}, "CLONER_TLS_CLIENT_KEY must hold a private key"),
        (lambda _, key: {"CA": key}, "CLONER_TLS_CA must hold certificates"),
        (lambda *_: {"CA": "/etc/ssl/ca.pem"}, "CLONER_TLS_CA must be PEM"),
        (lambda *_: {"CA_FILE": "/nowhere"}, "CLONER_TLS_CA_FILE cannot be read"),
    ],
)  # fmt: skip
def test_faults(authority: trustme.CA, given: Callable[[str, str], dict[str, str]], fault: str) -> None:
    """What cannot be spoken with stops the start, by the name of the variable."""
    pems = given(*pem(authority.issue_cert("gateway")))
    with pytest.raises(EnvironmentInvalid) as caught:
        environment.read(
            Settings,
            {"ELEVENLABS_WEBHOOK_SECRET": SECRET}
            | {f"CLONER_TLS_{name}": text for name, text in pems.items()},
        )

    assert str(caught.value).startswith(fault)
    assert "MII" not in str(caught.value)
