"""What docs/GRPC.md prints, done as it prints it: by a cloner and an emulator of its own, over sockets."""

import base64
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from precall.v1 import cloning_pb2 as pb

from cloner.rpc.access import OF_METHODS
from tests.documents.walks import Checkout, blocks, section
from tests.kit.golang import GENERATOR
from tests.kit.promises import CODES, EVERY, PROMISED

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "GRPC.md").read_text()
WALK = section(TEXT, "## In five minutes")
(SERVER,) = blocks(WALK.partition("### From Python")[0])
CALLS = section(TEXT, "## Each call")
DOCUMENTED = re.findall(r"^### (\w+)$", CALLS, re.MULTILINE)
METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["CloningService"].methods]
# What is another one each time.
VARIES = {"voiceId", "callId", "name"}
MOMENT = re.compile(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")

# Each command is a process, which a busy machine takes its time for.
pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture
def checkout(tmp_path: Path, uv: str) -> Checkout:
    """Where the walk is done."""
    return Checkout(tmp_path, uv)


def without_ids(text: str) -> str:
    """What is printed, without what is another one each time."""
    return re.sub(r"\b[0-9A-Za-z]{20}\b", "(id)", text)


async def test_python(checkout: Checkout) -> None:
    """From nothing to a cloned voice, as a team does that writes Python."""
    program, commands, printed = blocks(section(WALK, "### From Python"))
    checkout.write(program)
    async with checkout.serving(SERVER.text):
        said = await checkout.run(commands.text)

    assert without_ids(printed.text) == without_ids(said)


async def test_go(
    checkout: Checkout, compiling_go: AbstractAsyncContextManager[None], left_out: Callable[[str], None]
) -> None:
    """From nothing to a cloned voice, as a team does that writes Go; it is told the same."""
    if shutil.which("go") is None:
        left_out("the walk for a team that writes Go: there is no go")
        return
    module, generating, program, commands = blocks(section(WALK, "### From Go"))
    _, _, printed = blocks(section(WALK, "### From Python"))
    got = await checkout.start(module.text)
    _, err = await got.communicate()
    if got.returncode:
        assert re.search(r"dial tcp|no such host|proxy|i/o timeout|connection refused", err.decode()), (
            err.decode()
        )
        left_out("the walk for a team that writes Go: its modules cannot be had")
        return
    for block in (generating, program):
        checkout.write(block, "caller")
    async with compiling_go, checkout.serving(SERVER.text):
        await checkout.run(shlex.join(GENERATOR), folder="caller")
        said = await checkout.run(commands.text, folder="caller")

    assert without_ids(printed.text) == without_ids(said)


def test_versions() -> None:
    """The modules that the walk gets are those with which the clients in Go are tried."""
    tried = re.findall(r"^\s(\S+) (v\S+)", (ROOT / "tests/languages/go/go.mod").read_text(), re.MULTILINE)
    printed = re.findall(r"(\S+)@(v\S+)", section(WALK, "### From Go"))
    modules = [(name.removesuffix("/cmd/protoc-gen-go"), version) for name, version in printed]

    assert 4 == len(modules)
    assert set(modules) <= set(tried)


async def test_tls(checkout: Checkout) -> None:
    """Certificates of one's own, and a cloner that asks for one and shows one; nobody else is served."""
    _, certificates, setting, asking = blocks(section(TEXT, "### TLS"))
    await checkout.run(certificates.text)
    async with checkout.serving(setting.text + SERVER.text):
        said = await checkout.run(asking.text)
        stranger = await checkout.start(asking.text.replace("--cert team.pem --key team.key", ""))
        out, _ = await stranger.communicate()

    limits, answer = blocks(section(CALLS, "### GetLimits"))
    assert ("{}", json.loads(answer.text)) == (limits.text.strip(), json.loads(said))
    assert (True, b"") == (stranger.returncode != 0, out)


async def test_tokens(checkout: Checkout) -> None:
    """A token made as it is printed is one of the client whose hash stands in the table, and finds what is served."""
    table, making, asking = blocks(section(TEXT, "### Tokens"))
    hashed = await checkout.run(f'{making.text}echo "$token" > team')
    lines = re.sub(r'"[0-9a-f]{64}",', f'"{hashed.split()[0]}",', table.text, count=1)
    (checkout.folder / "clients.toml").write_text(lines)
    async with checkout.serving(f"export CLONER_CLIENTS_FILE=clients.toml\n{SERVER.text}"):
        said = await checkout.run(f"token=$(cat team)\n{asking.text}")

    assert {} == json.loads(said)


class Told:
    """What the document calls something, and what it is called this time."""

    def __init__(self) -> None:
        self._ours: dict[str, str] = {}

    def asked(self, text: str) -> str:
        """A request of the document, about what there is this time."""
        sample = base64.b64encode((ROOT / "tests/samples/speech.mp3").read_bytes()).decode()
        request = json.loads(text)
        if "sample" in request:
            assert sample.startswith(request["sample"].removesuffix("..."))
            request["sample"] = sample
        if "voiceId" in request:
            request["voiceId"] = self._ours[request["voiceId"]]
        return json.dumps(request)

    def compare(self, documented: Any, real: Any, name: str = "") -> None:
        """Fails unless both say the same, but for what is another one each time, which is one and the same in each."""
        if isinstance(documented, dict):
            assert list(documented) == list(real), name
            for key, value in documented.items():
                self.compare(value, real[key], key)
        elif isinstance(documented, list):
            assert len(documented) == len(real), name
            for one, other in zip(documented, real, strict=True):
                self.compare(one, other, name)
        elif isinstance(documented, str) and MOMENT.fullmatch(documented):
            assert MOMENT.fullmatch(real), name
        elif name in VARIES:
            assert re.sub(r"[0-9A-Za-z]{4,}", "", documented) == re.sub(r"[0-9A-Za-z]{4,}", "", real), name
            assert real == self._ours.setdefault(documented, real), name
        else:
            assert documented == real, name


def answers(text: str) -> Iterator[Any]:
    """The objects of JSON that stand one after the other."""
    decoder, text = json.JSONDecoder(), text.strip()
    while text:
        found, end = decoder.raw_decode(text)
        yield found
        text = text[end:].lstrip()


async def test_each_call(checkout: Checkout) -> None:
    """Each request of the document, sent in its order by `buf curl`, is answered as the document says."""
    (ask,) = blocks(CALLS.partition("\n### ")[0])
    function = ask.text[: ask.text.index("\n}\n") + 3]
    assert sorted(METHODS) == sorted(DOCUMENTED)
    told = Told()
    async with checkout.serving(SERVER.text):
        for name in DOCUMENTED:
            request, answer = blocks(section(CALLS, f"### {name}"))
            if name == "WatchVoice":
                stream = await checkout.start(f"{function}ask {name}", told.asked(request.text))
                watched, first = answer.text, b""
                while b"VOICE_STATE_READY" not in first:
                    first += await stream.stdout.readline()
                continue
            said = await checkout.run(f"{function}ask {name}", told.asked(request.text))
            # An agent may just be put back: then that is told, too.
            while name == "GetUsage" and "running" in json.loads(said)["providerQueue"]:
                said = await checkout.run(f"{function}ask {name}", told.asked(request.text))
            told.compare(json.loads(answer.text), json.loads(said), name)
        rest, err = await stream.communicate()
        assert 0 == stream.returncode, err
        told.compare(list(answers(watched)), list(answers((first + rest).decode())), "WatchVoice")
        # The example at the top of the section: a voice of nobody in particular.
        assert "VOICE_STATE_READY" in await checkout.run(ask.text)


def reasons() -> dict[str, dict[str, str]]:
    """The table of reasons: by group, the code that goes with each."""
    groups: dict[str, dict[str, str]] = {}
    group = ""
    rows = (
        section(TEXT, "## When a call fails").partition("| --- | --- | --- | --- |\n")[2].partition("\n\n")[0]
    )
    for row in rows.splitlines():
        named, listed, code, _ = (cell.strip() for cell in row.strip("|").split(" | "))
        group = named.strip("*") or group
        groups.setdefault(group, {}).update(dict.fromkeys(listed.split(", "), code))
    return groups


@pytest.mark.parametrize("method", METHODS)
def test_reasons_of_a_call(method: str) -> None:
    """The right and the reasons that the document gives are those of the contract."""
    line = section(CALLS, f"### {method}").partition("\n```")[0].replace("\n", " ")
    groups = reasons()
    fails = line.partition("Fails for ")[2]
    named = {reason for group in re.findall(r"\*([\w ]+)\*", fails) for reason in groups[group]}

    assert re.search(r"Right `(\w+)`", line)[1] == OF_METHODS[method]
    assert PROMISED[method] == named | set(re.findall(r"\b[A-Z]+_[A-Z]+\b", fails))
    assert "may be repeated" in line


def test_table_of_reasons() -> None:
    """The table has every reason that there is for a call, with the code that the proto promises."""
    groups = reasons()
    every = {reason: code for group in groups.values() for reason, code in group.items()}

    assert EVERY == set(groups["any"])
    assert every == {reason: CODES[reason] for reason in every}
    assert set(every) | {"NOT_FOUND"} == EVERY | frozenset.union(*map(frozenset, PROMISED.values()))
