"""A provider that goes takes every connection along, however young."""

import asyncio
import contextlib
import socket

import pytest

from emulator import Emulator


@pytest.mark.parametrize("turns", range(8))
async def test_connection_that_was_just_made(emulator: Emulator, turns: int) -> None:
    """It is hung up on, at whatever moment between the kernel's answer and the first byte."""
    async with emulator.listening() as url:
        host, _, port = url.removeprefix("http://").partition(":")
        client = socket.create_connection((host, int(port)))
        for _ in range(turns):
            await asyncio.sleep(0)
    with client:
        client.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert b"" == await asyncio.to_thread(client.recv, 1)
