"""TLS at the cloner's door, over real sockets, with certificates that are made here."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from precall.v1 import cloning_pb2 as pb
from precall.v1.cloning_pb2_grpc import CloningServiceStub
from structlog.testing import capture_logs

from cloner.settings import Settings
from environment import EnvironmentInvalid, Pem, read
from tests.kit.changes import comes_true
from tests.kit.processes.cloner import process, ready

TOKEN = "token-of-the-cloner-in-tests"


@pytest.fixture
def database(tmp_path) -> str:
    """SQLite alone: nothing here is about databases."""
    return f"sqlite:///{tmp_path}/precall.sqlite3"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Whom server and clients believe."""
    return trustme.CA()


@pytest.fixture(scope="module")
def stranger() -> trustme.CA:
    """Whom nobody believes, unless told to."""
    return trustme.CA()


def chain(issued: trustme.LeafCert) -> str:
    """A certificate with what comes after it, as PEM."""
    return b"".join(each.bytes() for each in issued.cert_chain_pems).decode()


def key(issued: trustme.LeafCert) -> str:
    """Its key, as PEM."""
    return issued.private_key_pem.bytes().decode()


def root(authority: trustme.CA) -> str:
    """What is believed, as PEM."""
    return authority.cert_pem.bytes().decode()


def encrypted(issued: trustme.LeafCert) -> str:
    """Its key, as nobody can read it without a word."""
    private = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"word")
    ).decode()  # fmt: skip


async def listed(
    port: int, trusted: trustme.CA, shown: trustme.LeafCert | None = None, **metadata: str
) -> str:
    """What comes of a call over a connection of its own: OK, or the status."""
    own = (None, None) if shown is None else (key(shown).encode(), chain(shown).encode())
    options = (("grpc.use_local_subchannel_pool", 1),)
    credentials = grpc.ssl_channel_credentials(root(trusted).encode(), *own)
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options=options) as channel:
        try:
            stub = CloningServiceStub(channel)
            await stub.ListVoices(pb.ListVoicesRequest(), timeout=10, metadata=tuple(metadata.items()))
        except grpc.aio.AioRpcError as failed:
            return failed.code().name
    return "OK"


async def test_tls(cloning, authority: trustme.CA, stranger: trustme.CA) -> None:
    """Whoever believes the certificate is served; nobody else is, and plain text is nothing."""
    issued = authority.issue_cert("localhost")
    async with cloning(cloner_tls_cert=Pem(chain(issued)), cloner_tls_key=Pem(key(issued))) as cloner:
        assert "OK" == await listed(cloner.port, authority)
        assert "UNAVAILABLE" == await listed(cloner.port, stranger)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cloner.ListVoices(pb.ListVoicesRequest(), timeout=10)

    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()


async def test_mutual_tls(cloning, authority: trustme.CA, stranger: trustme.CA) -> None:
    """A client without a certificate, or with a stranger's, is served nothing."""
    issued = authority.issue_cert("localhost")
    async with cloning(
        cloner_tls_cert=Pem(chain(issued)),
        cloner_tls_key=Pem(key(issued)),
        cloner_tls_client_ca=Pem(root(authority)),
    ) as cloner:
        assert "OK" == await listed(cloner.port, authority, authority.issue_cert("client"))
        assert "UNAVAILABLE" == await listed(cloner.port, authority)
        assert "UNAVAILABLE" == await listed(cloner.port, authority, stranger.issue_cert("client"))


async def test_rotation(cloning, authority: trustme.CA, stranger: trustme.CA, tmp_path: Path) -> None:
    """Files that change are what the next connection meets, and a call under way meets nothing of it."""
    paths = {name: tmp_path / f"{name}.pem" for name in ("cert", "key", "client_ca")}

    def write(issuer: trustme.CA) -> None:
        issued = issuer.issue_cert("localhost")
        for name, text in (("cert", chain(issued)), ("key", key(issued)), ("client_ca", root(issuer))):
            paths[name].write_text(text)

    write(authority)
    settings = {f"cloner_tls_{name}": Pem(path.read_text(), path) for name, path in paths.items()}
    old, new = authority.issue_cert("client"), stranger.issue_cert("client")
    with capture_logs() as lines:
        async with cloning(**settings) as cloner:
            credentials = grpc.ssl_channel_credentials(
                root(authority).encode(), key(old).encode(), chain(old).encode()
            )
            async with grpc.aio.secure_channel(f"localhost:{cloner.port}", credentials) as before:
                await CloningServiceStub(before).ListVoices(pb.ListVoicesRequest(), timeout=10)

                write(stranger)

                async def changed() -> bool:
                    return await listed(cloner.port, stranger, new) == "OK"

                await comes_true(changed)
                assert "UNAVAILABLE" == await listed(cloner.port, authority, old)
                await CloningServiceStub(before).ListVoices(pb.ListVoicesRequest(), timeout=10)

            # The key of another certificate.
            paths["key"].write_text(key(authority.issue_cert("localhost")))
            await comes_true(lambda: asyncio.sleep(0, any(line["log_level"] == "error" for line in lines)))
            assert await changed()

            write(authority)

            async def back() -> bool:
                return await listed(cloner.port, authority, old) == "OK"

            await comes_true(back)

    (told,) = [line for line in lines if line["log_level"] == "error"]
    assert "CLONER_TLS_KEY is not the key of CLONER_TLS_CERT" == told["fault"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost.example", "10.0.0.1"])
def test_plain_text_is_for_this_machine(host: str) -> None:
    """Beyond it somebody has to say that plain text will do."""
    environ = {"ELEVENLABS_API_KEY": "k", "CLONER_HOST": host, "CLONER_TOKEN": TOKEN}
    with pytest.raises(EnvironmentInvalid) as caught:
        read(Settings, environ)

    assert str(caught.value).startswith("CLONER_TLS_CERT is required")
    assert "CLONER_INSECURE" in str(caught.value)
    assert read(Settings, environ | {"CLONER_INSECURE": "true"}).cloner_insecure


async def test_plain_text_stops_the_start() -> None:
    """One line, and exit status 2."""
    async with process(
        ELEVENLABS_API_KEY="k", CLONER_PORT="0", CLONER_HOST="0.0.0.0", CLONER_TOKEN=TOKEN
    ) as started:
        out, err = await started.communicate()

    assert (2, b"", 1) == (started.returncode, out, len(err.splitlines()))
    assert b"CLONER_INSECURE" in err


async def test_strangers_write_no_lines(authority: trustme.CA, tmp_path: Path) -> None:
    """Whoever comes without a certificate, or with no TLS at all, fills no log."""
    issued = authority.issue_cert("localhost")
    for name, text in (("cert", chain(issued)), ("key", key(issued)), ("ca", root(authority))):
        (tmp_path / name).write_text(text)
    settings = {
        "ELEVENLABS_API_KEY": "k", "CLONER_PORT": "0", "CLONER_TLS_CERT_FILE": f"{tmp_path}/cert",
        "CLONER_TLS_KEY_FILE": f"{tmp_path}/key", "CLONER_TLS_CLIENT_CA_FILE": f"{tmp_path}/ca",
    }  # fmt: skip
    async with process(**settings) as started:
        port = int((await ready(started)).rpartition(":")[2])
        assert "UNAVAILABLE" == await listed(port, authority)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"what is no TLS\r\n\r\n")
        await reader.read()
        writer.close()
        assert "OK" == await listed(port, authority, authority.issue_cert("client"))
        started.terminate()
        _, err = await asyncio.wait_for(started.communicate(), 60)

    assert (0, b"") == (started.returncode, err)


async def test_process(authority: trustme.CA, tmp_path: Path) -> None:
    """A cloner on every address serves over TLS from files, and its own health check finds it there."""
    issued = authority.issue_cert("localhost")
    for name, text in (("cert", chain(issued)), ("key", key(issued)), ("ca", root(authority))):
        (tmp_path / name).write_text(text)
    settings = {
        "ELEVENLABS_API_KEY": "k", "CLONER_HOST": "0.0.0.0", "CLONER_TOKEN": TOKEN, "CLONER_PORT": "0",
        "CLONER_TLS_CERT_FILE": f"{tmp_path}/cert", "CLONER_TLS_KEY_FILE": f"{tmp_path}/key", "CLONER_TLS_CLIENT_CA_FILE": f"{tmp_path}/ca",
    }  # fmt: skip
    async with process(**settings) as started:
        port = int((await ready(started)).rpartition(":")[2])
        told = [
            await listed(port, authority, authority.issue_cert("client"), **metadata)
            for metadata in ({}, {"authorization": f"Bearer {TOKEN}"})
        ]
        health = []
        (tmp_path / "cert").write_text("broken since the cloner has read it")
        for asked in (str(port), str(port + 1)):
            asking = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "cloner.health"),
                env={"PATH": os.environ["PATH"], **settings, "CLONER_PORT": asked},
            )
            health.append(await asking.wait())
        started.terminate()
        await asyncio.wait_for(started.wait(), 30)

    assert (["UNAUTHENTICATED", "OK"], [0, 1], 0) == (told, health, started.returncode)


CASES: list[tuple[Any, list[str]]] = [
    (lambda a, _: {"cert": chain(a)}, ["CLONER_TLS_CERT and CLONER_TLS_KEY go together"]),
    (lambda a, _: {"key": key(a)}, ["CLONER_TLS_CERT and CLONER_TLS_KEY go together"]),
    (lambda a, _: {"client_ca": chain(a)}, ["CLONER_TLS_CLIENT_CA needs CLONER_TLS_CERT and CLONER_TLS_KEY"]),
    (lambda a, b: {"cert": chain(a), "key": key(b)}, ["CLONER_TLS_KEY is not the key of CLONER_TLS_CERT"]),
    (
        lambda a, _: {"cert": chain(a), "key": encrypted(a)},
        ["CLONER_TLS_KEY must hold a private key that is not encrypted"],
    ),
    (
        lambda a, _: {"cert": chain(a), "key": chain(a)},
        ["CLONER_TLS_KEY must hold a private key that is not encrypted"],
    ),
    (lambda a, _: {"cert": key(a), "key": key(a)}, ["CLONER_TLS_CERT must hold certificates"]),
    (
        lambda a, _: {"cert": chain(a)[:300], "key": key(a), "client_ca": "-----BEGIN CERTIFICATE-----"},
        ["CLONER_TLS_CERT must hold certificates", "CLONER_TLS_CLIENT_CA must hold certificates"],
    ),
    (
        lambda a, _: {"cert": chain(a).replace("MII", "MÜI", 1), "key": key(a)},
        ["CLONER_TLS_CERT must hold certificates"],
    ),
    (
        lambda a, _: {"cert": "/etc/tls/cert.pem", "key": key(a)},
        ["CLONER_TLS_CERT must be PEM (-----BEGIN ...), while a file is named by"],
    ),
]


@pytest.mark.parametrize(("given", "faults"), CASES)
def test_faults(authority: trustme.CA, given: Any, faults: list[str]) -> None:
    """What cannot be served with is refused, by the names of the variables and without a word of a key."""
    pem = given(authority.issue_cert("localhost"), authority.issue_cert("localhost"))
    with pytest.raises(EnvironmentInvalid) as caught:
        read(
            Settings,
            {"ELEVENLABS_API_KEY": "k"} | {f"CLONER_TLS_{name.upper()}": text for name, text in pem.items()},
        )

    told = str(caught.value).split("; ")
    assert len(faults) == len(told)
    assert all(one.startswith(fault) for one, fault in zip(told, faults, strict=True))
    assert "MII" not in str(caught.value)


def test_faults_of_files(authority: trustme.CA, tmp_path: Path) -> None:
    """What a file holds is refused by the name of the variable that was set."""
    files = {
        "CERT": chain(authority.issue_cert("localhost")),
        "KEY": key(authority.issue_cert("localhost")),
        "CLIENT_CA": "?",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "clients").write_text("[clients.crm]\nmay = 1\n")
    environ = {f"CLONER_TLS_{name}_FILE": str(tmp_path / name) for name in files}
    with pytest.raises(EnvironmentInvalid) as caught:
        read(
            Settings, {"ELEVENLABS_API_KEY": "k", "CLONER_CLIENTS_FILE": str(tmp_path / "clients"), **environ}
        )

    assert {
        "CLONER_TLS_CLIENT_CA_FILE must be PEM (-----BEGIN ...)",
        "CLONER_TLS_KEY_FILE is not the key of CLONER_TLS_CERT_FILE",
        "CLONER_CLIENTS_FILE: crm: may: Expected array, got int",
    } == set(str(caught.value).split("; "))


def test_pem_from_a_file_and_from_a_variable(authority: trustme.CA, tmp_path: Path) -> None:
    """Both are taken, with a byte order mark, line ends of Windows, and words before the certificate; neither shows itself."""
    issued = authority.issue_cert("localhost")
    (tmp_path / "key").write_bytes(b"\xef\xbb\xbf" + key(issued).replace("\n", "\r\n").encode())
    environ = {
        "CLONER_TLS_CERT": "# Zürich, subject=localhost\n" + chain(issued),
        "CLONER_TLS_KEY_FILE": f"{tmp_path}/key",
    }

    settings = read(Settings, {"ELEVENLABS_API_KEY": "k"} | environ)

    assert ["CLONER_TLS_CERT", "CLONER_TLS_KEY"] == list(settings.tls_documents)
    assert "PRIVATE" not in repr(settings)
