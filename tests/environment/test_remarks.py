import pytest
from msgspec import Struct

from cloner.settings import Settings as OfCloner
from environment import Host, Remark, read, remarks
from environment.remarks import KNOWN, PREFIXES
from gateway.settings import Settings as OfGateway

KEY = {"ELEVENLABS_API_KEY": "key-1"}
SECRET = {"ELEVENLABS_WEBHOOK_SECRET": "s3cret-of-the-webhook"}


def told(environ: dict[str, str]) -> list[tuple[str, str | None]]:
    """The variables that a cloner remarks on, with what might be meant."""
    return [
        (remark.variable, remark.facts.get("did_you_mean"))
        for remark in remarks(read(OfCloner, KEY | environ), KEY | environ)
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CLONER_TOKENS", "CLONER_TOKEN"),
        ("cloner_port", "CLONER_PORT"),
        ("VOICE_CLONE_MAX_DURATION_SECONDS", "VOICE_CLONE_MAX_DURATION"),
        ("VOICE_CLONE_KEEP_HOUR", "VOICE_CLONE_KEEP_HOURS"),
        ("PRECALL_DEPLOYMENTS", "PRECALL_DEPLOYMENT"),
        ("CLONER_PORT_FILE", "CLONER_PORT"),
        ("PRECALL_XYZZY_QUUX_FROBNICATE", None),
        ("REQUIRE_CONSENTS", "REQUIRE_CONSENT"),
        ("PROVIDER_CONCURENCY", "PROVIDER_CONCURRENCY"),
        ("ELEVENLABS_BASEURL", "ELEVENLABS_BASE_URL"),
        ("LOG_LEVEL_FILE", "LOG_LEVEL"),
        ("CALLER_HASH_KEYS_FILE", "CALLER_HASH_KEY_FILE"),
    ],
)
def test_unknown(name: str, meant: str | None) -> None:
    """A variable that nobody reads is named, with the one that is probably meant, and without its value."""
    assert [(name, meant)] == told({name: "marked-value"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TRUSTED_PROXY", "TRUSTED_PROXIES"),
        ("OVERRIDE_LEAFS", "OVERRIDE_LEAVES"),
        ("OVERRIDE_LEAF", "OVERRIDE_LEAVES"),
        ("ALLOWED_SOURCE", "ALLOWED_SOURCES"),
    ],
)
def test_one_instead_of_several(name: str, meant: str) -> None:
    """A name that is one of ours but for its number is told, however the plural is made."""
    environ = SECRET | {name: "marked-value"}

    assert [Remark("unknown variable", name, facts={"did_you_mean": meant})] == remarks(
        read(OfGateway, environ), environ
    )


@pytest.mark.parametrize(
    "name",
    [
        "CLONER_SERVICE_HOST", "CLONER_SERVICE_PORT", "CLONER_SERVICE_PORT_GRPC", "CLONER_PORT_50051_TCP",
        "CLONER_PORT_50051_TCP_PROTO", "CLONER_PORT_50051_TCP_PORT", "CLONER_PORT_50051_TCP_ADDR",
        "PRECALL_GATEWAY_SERVICE_HOST", "PRECALL_GATEWAY_PORT_3005_TCP", "PRECALL_WEBHOOK_PORT", "CLONER_TARGET",
        "PRECALL_PUBLISH_ADDRESS", "PATH", "OTHER_CLONER_PORT", "AWS_DEFAULT_REGION", "OTHER_DATABASE_URL",
        "LOG_FILE", "ELEVENLABS_WEBHOOK_SECRET", "ELEVENLABS_WEBHOOK_SECRET_FILE", "RATE_LIMIT_AGENT",
    ],
)  # fmt: skip
def test_known(name: str) -> None:
    """What an orchestrator tells, what the other process reads and what is not ours passes without a word."""
    assert [] == told({name: "10.0.0.1"})


def test_service_link() -> None:
    """What an orchestrator set for a service of the same name is told, for every such setting."""

    class Settings(Struct, frozen=True):
        a_port: int = 1
        a_host: Host = Host("::")
        a_text: str = ""

    environ = {"A_PORT": "tcp://10.0.0.1:1", "A_HOST": "udp://[::1]:1", "A_TEXT": "tcp://10.0.0.1:1"}
    settings = read(Settings, environ)

    assert Settings(a_text="tcp://10.0.0.1:1") == settings
    assert ["A_PORT", "A_HOST"] == [remark.variable for remark in remarks(settings, environ)]
    assert [] == told({"PRECALL_GATEWAY_PORT": "tcp://10.0.0.1:3005", "PRECALL_BUDGET": ""})


@pytest.mark.parametrize(
    "environ",
    [
        {"ELEVENLABS_WEBHOOK_SECRET": "everybody-knows-this-secret-so-change-it"},
        {"ELEVENLABS_WEBHOOK_SECRET": "s3cret-of-the-webhook,everybody-knows-this-secret-so-change-it"},
        SECRET | {"CLONER_TOKEN": "everybody-knows-this-token-so-change-it"},
        SECRET | {"CONVERSATION_INIT_TOKEN": "<CONVERSATION_INIT_TOKEN>"},
    ],
)
def test_published(environ: dict[str, str]) -> None:
    """A secret that stands in our own files is an error at every start, but stops nobody who tries it out."""
    (remark,) = remarks(read(OfGateway, environ), environ)

    assert (list(environ)[-1], True) == (remark.variable, remark.is_severe)


def test_nothing_odd() -> None:
    """Nothing is told where nothing is odd."""
    empty: list[Remark] = []

    assert empty == remarks(read(OfGateway, SECRET), SECRET)


def test_every_setting_is_known_to_all() -> None:
    """One file of variables may serve every process: none complains of what another reads."""
    fields = {field.upper() for kind in (OfGateway, OfCloner) for field in kind.__struct_fields__}

    assert {name for name in fields if name.startswith(PREFIXES)} == {
        name for name in KNOWN if not name.endswith("_FILE") and name != "PRECALL_PUBLISH_ADDRESS"
    }
