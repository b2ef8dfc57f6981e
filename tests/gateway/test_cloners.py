"""Cloners behind one name, as a name server tells them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
from precall.v1.cloning_pb2_grpc import add_CloningServiceServicer_to_server


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an IPv4 address with `addresses`, and every other with nothing."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        end = data.index(b"\0", 12) + 5
        kind = int.from_bytes(data[end - 4 : end - 2], "big")
        found = self.addresses if kind == 1 else []
        self.asked += kind == 1
        answers = b"".join(
            b"\xc0\x0c\x00\x01\x00\x01" + (1).to_bytes(4, "big") + b"\x00\x04" + socket.inet_aton(address)
            for address in found
        )
        counts = b"\x00\x01" + len(found).to_bytes(2, "big") + b"\x00\x00\x00\x00"
        self._transport.sendto(data[:2] + b"\x81\x80" + counts + data[12:end] + answers, addr)


@asynccontextmanager
async def replica(cloner: Any, address: str, port: int) -> AsyncIterator[int]:
    """A cloner there, which ends each connection after a while, as the cloner does."""
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_connection_age_ms", 1_000)],
    )
    add_CloningServiceServicer_to_server(cloner, server)
    try:
        bound = server.add_insecure_port(f"{address}:{port}")
        await server.start()
        yield bound
    finally:
        await server.stop(0)


async def test_added_cloner_is_found(gateway: Any, cloner: Any, deliver: Any, document: Any) -> None:
    """A cloner that is added behind `dns:///` gets its share of the calls, without a restart of the gateway."""
    added = type(cloner)()
    names = NameServer("127.0.0.1")
    async with AsyncExitStack() as stack:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: names, local_addr=("127.0.0.1", 0)
        )
        stack.callback(transport.close)
        port = await stack.enter_async_context(replica(cloner, "127.0.0.1", 0))
        server = "{}:{}".format(*transport.get_extra_info("sockname"))
        url = await gateway(cloner_target=f"dns://{server}/cloners.test:{port}")
        assert 200 == (await deliver(url, document())).status_code
        assert (1, 0) == (len(cloner.asked), len(added.asked))

        await stack.enter_async_context(replica(added, "127.0.0.2", port))
        names.addresses.append("127.0.0.2")
        number = 0
        async with asyncio.timeout(60):
            while not added.asked:
                number += 1
                answer = await deliver(url, document(conversation_id=f"conv_{number}"))
                assert 200 == answer.status_code
                await asyncio.sleep(0.2)

    assert 1 < names.asked
