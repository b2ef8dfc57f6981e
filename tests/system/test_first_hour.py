"""The way to the real API in docs/DEPLOYMENT.md, as it is printed; the emulator stands in for ElevenLabs."""

import asyncio
import json
import os
import re
import shutil
import stat
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import environment
from cloner.settings import Settings as OfCloner
from environment import Secret
from gateway.settings import Settings as OfGateway

ROOT = Path(__file__).parents[2]
SECTION = (
    (ROOT / "docs" / "DEPLOYMENT.md").read_text().partition("### The real API\n")[2].partition("\n### ")[0]
)
WRITING, STARTING, DELIVERING = (
    textwrap.dedent(block)
    for block in re.findall(r"^ +```sh\n(.*?)^ +```", SECTION, re.DOTALL | re.MULTILINE)
)


def in_shell(command: str, folder: Path) -> str:
    """What a newcomer's shell says."""
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environ, check=False, capture_output=True, text=True
    )
    assert 0 == done.returncode, (done.stdout, done.stderr)
    return done.stdout


def test_settings(tmp_path: Path) -> None:
    """The file is its owner's alone, and Compose starts from it what speaks to the real API, with no word of doubt."""
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    in_shell(WRITING, tmp_path)
    services = json.loads(in_shell("docker-compose config --format json", tmp_path))["services"]

    assert 0o600 == stat.S_IMODE((tmp_path / ".env").stat().st_mode)
    assert 0 == services["emulator"]["scale"]
    for name, kind in (("gateway", OfGateway), ("cloner", OfCloner)):
        environ = {key: value for key, value in services[name]["environment"].items() if value is not None}
        settings = environment.read(kind, environ)
        assert [] == list(environment.remarks(settings, environ))
    assert "https://api.elevenlabs.io" == settings.elevenlabs_base_url
    assert STARTING.startswith("docker compose up ")


async def test_delivery(running: Any, tmp_path: Path, samples: Path) -> None:
    """The delivery is signed with what the file holds, and answered with a voice."""
    in_shell(WRITING, tmp_path)
    told = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines())
    shutil.copy(samples / "speech.mp3", tmp_path / "recording.mp3")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    secret = Secret(told["ELEVENLABS_WEBHOOK_SECRET"])
    async with running(of_gateway={"elevenlabs_webhook_secret": (secret,)}) as system:
        command = DELIVERING.replace("YOUR_AGENT_ID", "agent_demo")
        command = command.replace("http://localhost:3005", str(system.http.base_url).rstrip("/"))
        answer = await asyncio.to_thread(in_shell, command, tmp_path)

    assert '"status": "success"' in answer
    assert "Hallo Ivan" in answer
    assert "recording.mp3" in DELIVERING
