"""The client as others install it: a wheel, in an environment that holds nothing else."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from environment import Secret

ROOT = Path(__file__).parents[2]
TOKEN = "token-of-the-cloner-in-tests"
PROGRAM = """
import asyncio
import sys
from pathlib import Path

from precall_client import Caller, SampleUnreadable, Voice, connect


async def main(target: str, token: str, sample: str) -> None:
    caller = Caller(name="Ivan", phone_number="+31612345678")
    async with connect(target, token=token) as precall:
        answer = await precall.clone_voice(caller=caller, sample=Path(sample), seconds=30)
        voice: Voice = answer.voice
        print(voice.voice_id)
        try:
            await precall.prepare_call(agent_id="a", conversation_id="c", sample=b"no audio", seconds=30)
        except SampleUnreadable as failure:
            delay: float | None = failure.retry_after
            print(failure.code.name, delay)


asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3]))
"""


@pytest.fixture(scope="module")
def environment(uv: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([uv, "build", "--quiet", ROOT / "client", "--out-dir", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", folder / "venv", wheel], check=True)
    return folder / "venv"


async def run(environment: Path, *arguments: str) -> tuple[int | None, str, str]:
    """Runs a Python that sees nothing but that environment."""
    process = await asyncio.create_subprocess_exec(
        environment / "bin" / "python", "-I", "-W", "error", *arguments, cwd=environment,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


def test_stands_alone(uv: str, environment: Path) -> None:
    """It asks for four packages, and brings nothing of the server."""
    listed = subprocess.run(
        [uv, "pip", "list", "--format", "json", "--python", environment], check=True, capture_output=True
    ).stdout

    assert {
        "googleapis-common-protos", "grpcio", "opentelemetry-api", "precall-client", "protobuf", "typing-extensions",
    } == {package["name"] for package in json.loads(listed)}  # fmt: skip


async def test_calls(cloning, environment: Path, samples: Path, emulator: Any) -> None:
    """A program of another team clones a voice, and reads why another recording will not do."""
    program = environment / "program.py"
    program.write_text(PROGRAM)
    async with cloning(cloner_token=(Secret(TOKEN),)) as cloner:
        status, out, err = await run(
            environment, str(program), f"127.0.0.1:{cloner.port}", TOKEN, str(samples / "speech.mp3")
        )

    (voice,) = emulator.voices.custom
    assert (0, f"{voice.voice_id}\nINVALID_ARGUMENT None\n", "") == (status, out, err)


def test_typed(environment: Path, tmp_path: Path) -> None:
    """A strict type checker knows what it gives, and finds a wrong use."""
    (tmp_path / "right.py").write_text(PROGRAM)
    (tmp_path / "wrong.py").write_text(PROGRAM.replace("voice: Voice", "voice: int"))
    checked = [
        subprocess.run(
            [sys.executable, "-m", "mypy", "--strict", "--python-executable", environment / "bin" / "python", name],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )
        for name in ("right.py", "wrong.py")
    ]  # fmt: skip

    assert [0, 1] == [each.returncode for each in checked], checked
    assert '"int" has no attribute "voice_id"' in checked[1].stdout
