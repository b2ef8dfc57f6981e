"""What the Dockerfile leaves out of the image is not missed."""

import re
import signal
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

from tests.kit.ports import free_port

ROOT = Path(__file__).parents[2]
SYNCS = re.findall(r"uv sync (.*?)\\?$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
LEFT_OUT = re.findall(r"--no-install-package (\S+)", SYNCS[-1])
# A module that is None cannot be imported.
WITHOUT = """
import runpy, sys
sys.modules.update(dict.fromkeys({left_out!r}))
runpy.run_module("gateway", run_name="__main__", alter_sys=True)
"""


def test_context() -> None:
    """What is copied is all that a build is sent: no secret, override or back-up that lies in a checkout."""
    first, *others = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] != "#"]
    sent = {line[1:] for line in others if line[0] == "!"}
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)

    assert "*" == first
    assert sent == {name.partition("/")[0] for names in copied for name in names.split()}


def test_left_out_by_each_step() -> None:
    """No step installs what another one leaves out."""
    assert 2 == len(SYNCS)
    for sync in SYNCS:
        assert LEFT_OUT == re.findall(r"--no-install-package (\S+)", sync)


def test_left_out_is_for_litestar_alone() -> None:
    """Nothing else that is installed asks for it."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    asking = {
        package["name"]
        for package in packages
        for needed in package.get("dependencies", ())
        if needed["name"] in LEFT_OUT
    }

    assert LEFT_OUT
    assert {"litestar"} == asking - set(LEFT_OUT)


def test_gateway_without_it() -> None:
    """The gateway starts without it and describes itself, for which Litestar would use it."""
    port = free_port()
    environ = {
        "ELEVENLABS_WEBHOOK_SECRET": "secret-of-the-image-0001",
        "PRECALL_WEBHOOK_HOST": "127.0.0.1", "PRECALL_WEBHOOK_PORT": str(port), "DRAIN_SECONDS": "0",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", WITHOUT.format(left_out=LEFT_OUT)],
        cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True,
    ) as gateway:  # fmt: skip
        try:
            for line in gateway.stdout:
                if line.startswith("gateway ready on"):
                    break
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/schema") as described:
                assert b'"/webhook"' in described.read()
        finally:
            gateway.send_signal(signal.SIGTERM)

    assert 0 == gateway.returncode
