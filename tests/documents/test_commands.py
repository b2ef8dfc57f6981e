"""Commands that documents print, run as they print them: processes from source and in containers, deliveries, voices."""

import asyncio
import base64
import json
import re
import shlex
import shutil
import stat
import sys
from pathlib import Path

import psutil
import pytest

from tests.documents.walks import Checkout, blocks, section

ROOT = Path(__file__).parents[2]
DEPLOYMENT, API, VOICES = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("DEPLOYMENT", "API", "VOICE_CLONING")
)
SECRET = "everybody-knows-this-secret-so-change-it"
FROM_SOURCE, DELIVERING = blocks(section(DEPLOYMENT, "### From source"))
CONTAINERS = section(DEPLOYMENT, "### Without Compose")

# A path with a space is none for the first line of a script.
BY_PYTHON = f"""#!/bin/sh
'''exec' {shlex.quote(sys.executable)} "$0" "$@"
' '''
"""

# In the place of Docker: nobody can write to the root, and a volume is a folder beside this file.
DOCKER = """import argparse, os, pathlib, subprocess, sys

parser = argparse.ArgumentParser()
for flag in ("--detach", "--init", "--read-only"):
    parser.add_argument(flag, action="store_true")
for option in ("--name", "--env-file", "--volume", "--network", "--tmpfs", "--cap-drop", "--security-opt", "--memory",
               "--stop-timeout", "--restart", "--health-cmd"):
    parser.add_argument(option)
parser.add_argument("--workdir", default="/proc")
parser.add_argument("image")
parser.add_argument("command", nargs=argparse.REMAINDER)
if sys.argv[1] == "build":
    sys.exit()
told = parser.parse_args(sys.argv[2:])
here, folder = pathlib.Path(__file__).parent, told.workdir
if told.volume and told.volume.partition(":")[2] == folder:
    folder = here / told.volume.partition(":")[0]
    folder.mkdir(mode=0o700)
environ = dict(line.split("=", 1) for line in (here / told.env_file).read_text().splitlines())
with open(here / f"{told.name}.log", "ab") as log:
    started = subprocess.Popen(
        told.command or ["python", "-m", "gateway"],
        cwd=folder, env={"PATH": os.environ["PATH"]} | environ, stdout=log, stderr=log,
    )
(here / f"{told.name}.pid").write_text(str(started.pid))
"""

# In the place of Compose: the cloner's container; and beside what runs, one that sees one folder, and runs as whoever
# owns that.
COMPOSE = """import argparse, os, sys

if sys.argv[1:5] == ["compose", "exec", "-T", "cloner"]:
    os.chdir("/")
    os.execvp(sys.argv[5], sys.argv[5:])
assert sys.argv[1:3] == ["compose", "run"]
parser = argparse.ArgumentParser()
for flag in ("--rm", "--no-deps", "-T"):
    parser.add_argument(flag, action="store_true", required=True)
for option in ("--user", "--volume", "--workdir", "--env"):
    parser.add_argument(option, required=True)
parser.add_argument("service")
parser.add_argument("command", nargs=argparse.REMAINDER)
told = parser.parse_args(sys.argv[3:])
folder, place = told.volume.split(":")
assert ("cloner", told.workdir) == (told.service, place)
assert f"{os.getuid()}:{os.getgid()}" == told.user
os.chdir(folder)
name, value = told.env.split("=")
os.environ[name] = value.replace(f"{told.service}:", "localhost:")
os.execvp(told.command[0], told.command)
"""

# Each command is a process, which a busy machine takes its time for.
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def checkout(tmp_path: Path, uv: str) -> Checkout:
    """Where the commands are run."""
    return Checkout(tmp_path, uv)


async def ready(process: psutil.Process, log: Path) -> None:
    """Waits until a process has written that it serves."""
    while f"{log.stem} ready on" not in log.read_text():
        assert process.status() != psutil.STATUS_ZOMBIE, log.read_text()
        await asyncio.sleep(0.05)


async def test_from_source(checkout: Checkout, samples: Path, left_out) -> None:
    """Three processes from source take the example's delivery, one by curl, and what an operator does to voices."""
    event = json.loads((ROOT / "examples" / "pre_call.json").read_text())
    event["conversation_id"] = "conv_of_curl"
    sample = base64.b64encode((samples / "speech.mp3").read_bytes()).decode()
    event["voice_sample"] = {"format": "base64", "data": sample}
    (checkout.folder / "body.json").write_text(json.dumps(event))
    signing = blocks(section(API, "### `POST /webhook`"))[0]
    from_source, in_container, beside = blocks(section(VOICES, "## The life of a voice"))
    voices, forgetting, replacing = from_source.text.splitlines()
    callers, enrolling = blocks(section(VOICES, "## Voices ahead of time"))
    (checkout.folder / "recording.mp3").symlink_to(samples / "speech.mp3")
    (checkout.folder / "callers.csv").write_text(callers.text)
    (checkout.folder / "recordings").mkdir()
    for name, recording in (("ada.mp3", "speech.mp3"), ("ben.flac", "speech.flac")):
        shutil.copy(samples / recording, checkout.folder / "recordings" / name)
    async with checkout.serving(FROM_SOURCE.text, "emulator", "cloner", "gateway"):
        delivered = await checkout.run(DELIVERING.text)
        if can_sign := bool(shutil.which("curl") and shutil.which("openssl")):
            signed = await checkout.run(f"ELEVENLABS_WEBHOOK_SECRET={SECRET}\n{signing.text}")
        else:
            left_out("a delivery by curl and openssl")
        # For real, which is the command that is installed.
        listed = await checkout.run(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n{voices}")
        forgotten = await checkout.run(forgetting)
        await checkout.run(replacing)
        enrolled = await checkout.run(enrolling.text)
        left = await checkout.run(voices)
        (checkout.folder / "docker").write_text(BY_PYTHON + COMPOSE)
        (checkout.folder / "docker").chmod(0o755)
        (again,) = re.findall(r"With Compose it is `(.*?)`", section(VOICES, "## Voices ahead of time"))
        from_there = await checkout.run(f"PATH=$PWD:$PATH\n{in_container.text}\n{beside.text}\n{again}")

    assert [200, 401, 200] == [int(status) for status in re.findall(r"^HTTP (\d+)", delivered, re.MULTILINE)]
    if can_sign:
        answer = json.loads(signed)
        assert ("success", True) == (answer["status"], answer["voice_reused"])
    (voice,) = [line.split()[0] for line in listed.splitlines()]
    assert voice == json.loads(delivered[delivered.rindex("\n{") :])["voice_id"]
    assert forgotten.startswith("1 voices deleted")
    assert enrolled.startswith("2 enrolled")
    assert 3 == len(left.splitlines())
    *listed_there, forgotten_there, replaced_there, enrolled_there = from_there.splitlines()
    assert left.splitlines() == listed_there
    assert forgotten_there.startswith("1 voices deleted")
    assert "Ivan_Clone" in replaced_there
    assert enrolled_there.startswith("2 enrolled")
    assert 0o600 == stat.S_IMODE((checkout.folder / "precall.sqlite3").stat().st_mode)


async def test_containers(checkout: Checkout, emulator_url: str) -> None:
    """The cloner keeps its registry on its volume, where the root is read-only; the gateway needs no place."""
    docker = checkout.folder / "docker"
    docker.write_text(BY_PYTHON + DOCKER)
    docker.chmod(0o755)
    for name, settings in {
        "cloner": f"ELEVENLABS_API_KEY=key-of-the-emulator\nELEVENLABS_BASE_URL={emulator_url}\nCLONER_PORT=50051\n",
        "gateway": f"ELEVENLABS_WEBHOOK_SECRET={SECRET}\nPRECALL_WEBHOOK_HOST=127.0.0.1\n"
        "CLONER_TARGET=localhost:50051\nPRECALL_WEBHOOK_PORT=3005\n",
    }.items():
        (checkout.folder / f"{name}.env").write_text(checkout.printed(settings))
    (starting,) = blocks(CONTAINERS)
    (health,) = re.findall(r'--health-cmd "(.*?)"', starting.text)
    processes = []
    try:
        await checkout.run(f"PATH=$PWD:$PATH\n{starting.text}")
        for name in ("cloner", "gateway"):
            process = psutil.Process(int((checkout.folder / f"{name}.pid").read_text()))
            processes.append(process)
            await ready(process, checkout.folder / f"{name}.log")
        await checkout.run(health)
        delivered = await checkout.run(DELIVERING.text)
    finally:
        for process in processes:
            process.terminate()
        psutil.wait_procs(processes, timeout=60)

    assert "success" == json.loads(delivered[delivered.rindex("\n{") :])["status"]
    assert {"precall.sqlite3", "precall.sqlite3.key"} <= {
        path.name for path in (checkout.folder / "precall-registry").iterdir()
    }
