"""Callers in other languages, as they generate their code or ask for what is served."""

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environment import Secret

ROOT = Path(__file__).parents[2]
GO = Path(__file__).parent / "go"
TOKEN = "token-of-the-cloner-in-tests"
LIST = "precall.v1.CloningService/ListVoices"


async def run(*command: str, cwd: Path | None = None) -> tuple[int | None, str, str]:
    """What a program says, and how it ends."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | {"GOTOOLCHAIN": "local"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_go(
    cloning, emulator: Any, samples: Path, tmp_path: Path, left_out: Callable[[str], None]
) -> None:
    """The package that buf generates for Go compiles under its own name, and clones a voice with gRPC's defaults."""
    if shutil.which("go") is None:
        left_out("a client in Go: there is no go")
        return
    module = tmp_path / "module"
    shutil.copytree(GO, module)
    for command in (
        ("buf", "generate", str(ROOT / "proto")),
        ("go", "vet", "./..."),
        ("go", "build", "-o", "caller", "."),
    ):
        assert (0, "") == (await run(*command, cwd=module))[::2], command
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        status, out, err = await run(
            str(module / "caller"), f"localhost:{cloner.port}", TOKEN, str(samples / "speech.mp3")
        )

    (voice,) = emulator.voices.custom
    assert (0, f"{voice.voice_id}\nNotFound NOT_FOUND\n", "") == (status, out, err)


async def test_buf_curl(cloning) -> None:
    """Knowing nothing but the address and a token, buf finds out what is served, and calls it."""
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        asked = ("buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", "{}")
        url = f"http://127.0.0.1:{cloner.port}/{LIST}"
        shown = (
            "--header",
            f"authorization: Bearer {TOKEN}",
            "--reflect-header",
            f"authorization: Bearer {TOKEN}",
        )
        known = await run(*asked, *shown, url)
        stranger = await run(*asked, url)

    assert (0, {}) == (known[0], json.loads(known[1] or "null"))
    assert (True, "") == (stranger[0] != 0, stranger[1])


async def test_grpcurl(cloning, left_out: Callable[[str], None]) -> None:
    """As buf does, so does grpcurl."""
    if shutil.which("grpcurl") is None:
        left_out("grpcurl: there is none")
        return
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        told = await run(
            "grpcurl", "-plaintext", "-H", f"authorization: Bearer {TOKEN}", f"127.0.0.1:{cloner.port}", LIST
        )

    assert (0, {}) == (told[0], json.loads(told[1] or "null"))
