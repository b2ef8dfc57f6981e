"""deploy/nginx.conf in front of the gateway, as a real nginx reads it."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trustme

from environment import Proxies, Sources
from tests.kit.ports import free_port
from tests.system.conftest import Running, System

ROOT = Path(__file__).parents[2]
HOST = "precall.example.com"
MAIN = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/precall.conf;
}}
"""


@asynccontextmanager
async def proxied(nginx: str, folder: Path, gateway: str) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    """Serves by the shipped file, but for addresses and the certificate. Yields the URL and whom to trust."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST, "127.0.0.1")
    (folder / "fullchain.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "privkey.pem").write_bytes(issued.private_key_pem.bytes())
    port = free_port()
    shipped = (ROOT / "deploy" / "nginx.conf").read_text()
    for there, here in (
        ("127.0.0.1:3005", gateway.removeprefix("http://")),
        ("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        ("    listen [::]:443 ssl;\n", ""),
        ("/etc/ssl/precall/", f"{folder}/"),
    ):
        assert there in shipped
        shipped = shipped.replace(there, here)
    (folder / "precall.conf").write_text(shipped)
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
    process = await asyncio.create_subprocess_exec(
        nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), stderr=asyncio.subprocess.PIPE
    )
    try:
        await _listening(process, port)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        yield f"https://127.0.0.1:{port}", context
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
    assert 0 == process.returncode


async def _listening(process: asyncio.subprocess.Process, port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            assert process.returncode is None, (await process.communicate())[1].decode()
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


async def test_delivery_through_nginx(
    running: Running, speech: bytes, tmp_path: Path, left_out: Callable[[str], None]
) -> None:
    """Webhooks pass, both forms of a delivery too, and nothing else; nobody says of himself where he is."""
    if (nginx := shutil.which("nginx")) is None:
        left_out("nginx")
        return
    # Two addresses of this machine: nginx comes from the one, and only the other may send.
    settings = {"trusted_proxies": Proxies.read("127.0.0.1"), "allowed_sources": Sources.read("127.0.0.2")}
    async with (
        running(of_gateway=settings) as system,
        proxied(nginx, tmp_path, str(system.http.base_url)) as (url, trusted),
        _client(url, trusted, "127.0.0.2") as sender,
        _client(url, trusted, "127.0.0.1") as stranger,
    ):
        through = System(sender, system.emulator, system.cloner)
        delivered = [
            await through.deliver(speech, form=form, conversation_id=f"conv_{form}")
            for form in ("json", "multipart")
        ]
        ended = await through.end("conv_json")
        unsigned = await sender.post("/webhook", json={})
        hidden = [
            (await sender.get(path)).status_code for path in ("/health", "/health/ready", "/schema", "/")
        ]
        claims = [
            await stranger.post("/webhook", json={}, headers=headers)
            for headers in ({}, {"X-Forwarded-For": "127.0.0.2"}, {"Forwarded": "for=127.0.0.2"})
        ]
        large = await through.deliver(bytes(10 * 1_048_576 + 1))

    assert [(200, "success")] * 2 == [(answer.status_code, answer.json()["status"]) for answer in delivered]
    assert 200 == ended.status_code
    assert (401, "SIGNATURE_MISSING") == (unsigned.status_code, unsigned.json()["reason"])
    assert [404] * 4 == hidden
    assert [(403, "PERMISSION_DENIED")] * 3 == [(one.status_code, one.json()["reason"]) for one in claims]
    # Not nginx's own words, but the gateway's.
    assert (413, "SAMPLE_TOO_LARGE") == (large.status_code, large.json()["reason"])


def _client(url: str, trusted: ssl.SSLContext, address: str) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(verify=trusted, local_address=address)
    return httpx.AsyncClient(base_url=url, transport=transport, timeout=30)
