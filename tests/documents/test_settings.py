"""The documents name every setting with its default, and none that does not exist."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

import environment
from cloner.settings import Settings as OfCloner
from emulator.settings import from_environ
from environment import EnvironmentInvalid, Secret
from gateway.settings import Settings as OfGateway

ROOT = Path(__file__).parents[2]
BOTH = {"DEFAULT_REGION", "DRAIN_SECONDS", "LOG_LEVEL", "LOG_FORMAT", "SHUTDOWN_GRACE_SECONDS"}
# Defaults that no value of the class says.
IN_WORDS = {
    "RATE_LIMIT_STORAGE": "`memory://`",  # a secret, which does not show itself
    "CALLER_HASH_KEY": "kept beside a SQLite file",
    "PRECALL_DEPLOYMENT": "made once",
    "DYNAMIC_VARIABLES": "`{}`",
}
OF_EMULATOR = {
    "EMULATOR_HOST", "EMULATOR_PORT", "EMULATOR_API_KEY", "EMULATOR_CREATE_LATENCY_SECONDS",
    "EMULATOR_LATENCY_SECONDS", "EMULATOR_VOICE_LIMIT", "EMULATOR_MONTHLY_LIMIT",
}  # fmt: skip
OF_COMPOSE = {"PRECALL_PUBLISH_ADDRESS", "EMULATOR_REPLICAS", "COMPOSE_PROFILES", "POSTGRES_PASSWORD"}
LEAST = {
    OfGateway: {"ELEVENLABS_WEBHOOK_SECRET": "s3cret-of-the-webhook"},
    OfCloner: {"ELEVENLABS_API_KEY": "key-1"},
}


def fields(settings: Any) -> dict[str, Any]:
    """The variables of a class, with their defaults."""
    return {field.name.upper(): field for field in msgspec.structs.fields(settings)}


def documented(process: str) -> dict[str, str]:
    """What docs/CONFIGURATION.md says of this process: variable to default, as it stands there."""
    text = (ROOT / "docs" / "CONFIGURATION.md").read_text()
    table = re.search(rf"\| {process} \| default \| meaning \|\n(.*?)\n(?:\n|$)", text, re.DOTALL)
    found: dict[str, str] = {}
    for row in table[1].splitlines()[1:]:
        names, default = re.split(r"(?<!\\)\|", row)[1:3]
        for name, one in zip(
            names.split(", "), _defaults(default.strip(), names.count(", ") + 1), strict=True
        ):
            found[name.strip().strip("`")] = one
    return found


def _defaults(text: str, count: int) -> list[str]:
    return text.split(", ") if count > 1 else [text]


def as_documented(field: Any) -> str:
    """A default, as docs/CONFIGURATION.md says it."""
    name, default = field.name.upper(), field.default
    if name in IN_WORDS:
        return IN_WORDS[name]
    if field.required:
        return "required"
    if default is None or default == ():
        return "not set"
    if isinstance(default, tuple):
        default = ",".join(default)
    elif isinstance(default, bool):
        default = str(default).lower()
    return f"`{default}`"


@pytest.mark.parametrize(("process", "settings"), [("gateway", OfGateway), ("cloner", OfCloner)])
def test_table(process: str, settings: Any) -> None:
    """Every setting of a process has its row, with its default."""
    told = documented(process) | {name: one for name, one in documented("both").items() if name in BOTH}

    wanted = {name: as_documented(field) for name, field in fields(settings).items()}
    assert set(wanted) == set(told)
    for name, default in wanted.items():
        assert _number(default) == _number(told[name]), name


def _number(text: str) -> object:
    plain = text.strip("`")
    return float(plain) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", plain) else text


def test_table_of_the_emulator() -> None:
    """The emulator's rows hold its defaults."""
    told = {name: default.strip("`") for name, default in documented("emulator").items()}

    assert set(told) == OF_EMULATOR
    assert from_environ({}) == from_environ(told)


def test_example() -> None:
    """.env.example names every setting, and what it gives as a default is one."""
    lines = re.findall(r"^#([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), re.MULTILINE)
    told = {name: value.strip("'") for name, value in lines if not name.startswith("OTEL_")}

    assert len(lines) == len(dict(lines))
    assert set(fields(OfGateway)) | set(fields(OfCloner)) | OF_EMULATOR | OF_COMPOSE == set(told)
    for settings, least in LEAST.items():
        given = {
            name: value
            for name, value in told.items()
            if name in fields(settings) and value and name not in IN_WORDS
        }
        assert environment.read(settings, least) == environment.read(settings, least | given)


def test_compose() -> None:
    """docker-compose.yml hands each process its settings, and nothing that the process does not read."""
    text = (ROOT / "docker-compose.yml").read_text()
    shared = set(
        re.findall(r"^  ([A-Z_]+):", re.search(r"x-both:.*?\n(.*?)\n\n", text, re.DOTALL)[1], re.MULTILINE)
    )
    for service, settings, fixed in (
        ("gateway", OfGateway, {"PRECALL_WEBHOOK_HOST", "PRECALL_WEBHOOK_PORT"}),
        ("cloner", OfCloner, {"CLONER_PORT"}),
    ):
        block = re.search(rf"^  {service}:\n(.*?)^    (?:ports|volumes):", text, re.DOTALL | re.MULTILINE)[1]
        passed = set(re.findall(r"^      ([A-Z_]+):", block, re.MULTILINE))
        ours = {name for name in shared if not name.startswith("OTEL_")}

        assert set(fields(settings)) - fixed == (passed | ours) - fixed


def test_published_secrets() -> None:
    """A secret that stands in the project's own files is known as such at every start."""
    text = "".join(
        (ROOT / name).read_text()
        for name in (
            "docker-compose.yml",
            ".env.example",
            "README.md",
            "docs/CONFIGURATION.md",
            "docs/DEPLOYMENT.md",
            "docs/API.md",
        )
    )
    names = "ELEVENLABS_WEBHOOK_SECRET|CLONER_TOKEN|CONVERSATION_INIT_TOKEN|CALLER_HASH_KEY"
    written = set(re.findall(rf"(?:{names})(?:: \$\{{[A-Z_]+:-|=)([^\s}}]+)", text))

    assert {"everybody-knows-this-secret-so-change-it", "everybody-knows-this-token-so-change-it"} <= written
    for value in written:
        environ = LEAST[OfGateway] | {"CLONER_TOKEN": value}
        try:
            settings = environment.read(OfGateway, environ)
        except EnvironmentInvalid:
            continue  # too short to be used at all
        assert settings.cloner_token == (Secret(value),)
        assert ["CLONER_TOKEN"] == [
            one.variable for one in environment.remarks(settings, environ) if one.is_severe
        ]
