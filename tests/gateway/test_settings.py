from pathlib import Path

import pytest

from environment import EnvironmentInvalid, Secret, read
from gateway.settings import Settings

LEAST = {"ELEVENLABS_WEBHOOK_SECRET": "s3cret-of-the-webhook"}


def test_defaults() -> None:
    """A secret is all that is needed."""
    actual = read(Settings, LEAST)

    expected = Settings(
        elevenlabs_webhook_secret=(Secret("s3cret-of-the-webhook"),),
        precall_webhook_host="0.0.0.0",
        precall_webhook_port=3005,
        cloner_target="localhost:50051",
        precall_budget_ms=15000,
        precall_fallback="error",
        conversation_init_token=(),
        conversation_init_budget_ms=2500,
        default_region=None,
        own_numbers=(),
        dynamic_variables={},
        override_leaves=("tts.voice_id", "agent.first_message"),
        voice_clone_max_size_mb=10.0,
        body_timeout_seconds=10.0,
        body_least_bytes_per_second=8_192.0,
        body_buffer_mb=512,
        cloner_token=(),
        post_call_max_mb=100.0,
        post_call_held_mb=8.0,
        post_call_timeout_seconds=60.0,
        log_level="INFO",
        log_format="text",
        shutdown_grace_seconds=30,
    )
    assert expected == actual


def test_all() -> None:
    """Every variable is read."""
    actual = read(
        Settings,
        {
            "ELEVENLABS_WEBHOOK_SECRET": "secret-number-one, secret-number-two",
            "PRECALL_WEBHOOK_HOST": "::1",
            "PRECALL_WEBHOOK_PORT": "0",
            "CLONER_TARGET": "dns:///cloner:50051",
            "PRECALL_BUDGET_MS": "8000",
            "PRECALL_FALLBACK": "default_voice",
            "CONVERSATION_INIT_TOKEN": "token-of-the-initiation",
            "CONVERSATION_INIT_BUDGET_MS": "900",
            "DEFAULT_REGION": "NL",
            "OWN_NUMBERS": "+31201234567, 0800 1234, tel:+31-20-1234568",
            "DYNAMIC_VARIABLES": '{"who": "{name|friend}", "visits": 3, "vip": true, "rate": 0.5, "code": "5"}',
            "OVERRIDE_LEAVES": "tts.voice_id",
            "VOICE_CLONE_MAX_SIZE_MB": "2.5",
            "BODY_TIMEOUT_SECONDS": "4",
            "BODY_LEAST_BYTES_PER_SECOND": "1000",
            "BODY_BUFFER_MB": "64",
            "CLONER_TOKEN": "token-of-the-cloner",
            "POST_CALL_MAX_MB": "50",
            "POST_CALL_HELD_MB": "0.5",
            "POST_CALL_TIMEOUT_SECONDS": "30",
            "PRECALL_MAX_CONNECTIONS": "7",
            "PRECALL_KEEP_ALIVE_SECONDS": "620",
            "LOG_LEVEL": "DEBUG",
            "LOG_FORMAT": "json",
            "SHUTDOWN_GRACE_SECONDS": "5",
        },
    )

    expected = Settings(
        elevenlabs_webhook_secret=(Secret("secret-number-one"), Secret("secret-number-two")),
        precall_webhook_host="::1",
        precall_webhook_port=0,
        cloner_target="dns:///cloner:50051",
        precall_budget_ms=8000,
        precall_fallback="default_voice",
        conversation_init_token=(Secret("token-of-the-initiation"),),
        conversation_init_budget_ms=900,
        default_region="NL",
        own_numbers=("+31201234567", "0800 1234", "tel:+31-20-1234568"),
        dynamic_variables={"who": "{name|friend}", "visits": 3, "vip": True, "rate": 0.5, "code": "5"},
        override_leaves=("tts.voice_id",),
        voice_clone_max_size_mb=2.5,
        body_timeout_seconds=4.0,
        body_least_bytes_per_second=1_000.0,
        body_buffer_mb=64.0,
        cloner_token=(Secret("token-of-the-cloner"),),
        post_call_max_mb=50.0,
        post_call_held_mb=0.5,
        post_call_timeout_seconds=30.0,
        precall_max_connections=7,
        precall_keep_alive_seconds=620,
        log_level="DEBUG",
        log_format="json",
        shutdown_grace_seconds=5,
    )
    assert expected == actual
    assert 2_621_440 == actual.max_sample_bytes
    assert (52_428_800, 524_288) == (actual.max_event_bytes, actual.max_held_event_bytes)


def test_secret_from_file(tmp_path: Path) -> None:
    """The secrets may come from a file."""
    (tmp_path / "secret").write_text("secret-number-one,secret-number-two\n")
    (tmp_path / "token").write_text("token-of-the-cloner\n")
    (tmp_path / "init").write_text("token-of-the-initiation\n")

    actual = read(
        Settings,
        {
            "ELEVENLABS_WEBHOOK_SECRET_FILE": str(tmp_path / "secret"),
            "CLONER_TOKEN_FILE": str(tmp_path / "token"),
            "CONVERSATION_INIT_TOKEN_FILE": str(tmp_path / "init"),
        },
    )

    assert (Secret("secret-number-one"), Secret("secret-number-two")) == actual.elevenlabs_webhook_secret
    assert (Secret("token-of-the-cloner"),) == actual.cloner_token
    assert (Secret("token-of-the-initiation"),) == actual.conversation_init_token


def test_secret_is_not_shown() -> None:
    """No secret is in the settings' text."""
    tokens = {"CLONER_TOKEN": "t0ken-of-the-cloner", "CONVERSATION_INIT_TOKEN": "t0ken-of-the-initiation"}
    shown = repr(read(Settings, LEAST | tokens))

    assert "s3cret-of-the-webhook" not in shown
    assert "t0ken" not in shown


@pytest.mark.parametrize("name", ["CLONER_TOKEN", "CONVERSATION_INIT_TOKEN"])
@pytest.mark.parametrize("token", ["t0k\u00e9n", "t0ken\x01"])
def test_token_refused(name: str, token: str) -> None:
    """A token that could not be sent is refused, and not shown."""
    with pytest.raises(EnvironmentInvalid) as fault:
        read(Settings, LEAST | {name: token})

    assert f"{name} must be printable ASCII" == str(fault.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ELEVENLABS_WEBHOOK_SECRET", ""),
        ("ELEVENLABS_WEBHOOK_SECRET", " , "),
        ("PRECALL_WEBHOOK_PORT", "-1"),
        ("PRECALL_WEBHOOK_PORT", "65536"),
        ("PRECALL_WEBHOOK_PORT", "http"),
        ("PRECALL_BUDGET_MS", "0"),
        ("PRECALL_BUDGET_MS", "soon"),
        ("PRECALL_FALLBACK", "silence"),
        ("CONVERSATION_INIT_BUDGET_MS", "199"),
        ("OWN_NUMBERS", "+31201234567,ours"),
        ("OWN_NUMBERS", "+31201234567,020 7654321"),
        ("OWN_NUMBERS", "+10000000000"),
        ("OWN_NUMBERS", "anonymous"),
        ("DEFAULT_REGION", "31"),
        ("DEFAULT_REGION", "Netherlands"),
        ("DEFAULT_REGION", "UK"),
        ("OVERRIDE_LEAVES", "tts.voice_id,agent.prompt"),
        ("VOICE_CLONE_MAX_SIZE_MB", "0"),
        ("VOICE_CLONE_MAX_SIZE_MB", "nan"),
        ("BODY_TIMEOUT_SECONDS", "-1"),
        ("BODY_BUFFER_MB", "5"),
        ("BODY_BUFFER_MB", "inf"),
        ("POST_CALL_MAX_MB", "0"),
        ("POST_CALL_HELD_MB", "-1"),
        ("POST_CALL_HELD_MB", "513"),
        ("POST_CALL_TIMEOUT_SECONDS", "0"),
        ("LOG_LEVEL", "LOUD"),
        ("LOG_FORMAT", "xml"),
        ("SHUTDOWN_GRACE_SECONDS", "-1"),
        ("DYNAMIC_VARIABLES", "not json"),
        ("DYNAMIC_VARIABLES", "[]"),
        ("DYNAMIC_VARIABLES", "[" * 100_000),
        ("DYNAMIC_VARIABLES", '{"a": 1e999}'),
        ("DYNAMIC_VARIABLES", "\udcff"),
        ("CLONER_TARGET", "http://cloner:50051"),
        ("CLONER_TARGET", "cloner"),
        ("PRECALL_WEBHOOK_HOST", "0.0.0.0:3005"),
        ("PRECALL_BUDGET_MS", "1e999"),
        ("PRECALL_BUDGET_MS", "9" * 5_000),
        ("SHUTDOWN_GRACE_SECONDS", "1e999"),
        ("OVERRIDE_LEAVES", ","),
        ("ELEVENLABS_WEBHOOK_SECRET", "long-enough-to-be-one, short"),
        ("CONVERSATION_INIT_TOKEN", "fifteen-letters"),
        ("CLONER_TOKEN", "fifteen-letters"),
        ("CLONER_TOKEN", ","),
        ("RATE_LIMIT_AGENT", "0/minute"),
        ("RATE_LIMIT_AGENT", "100"),
        ("RATE_LIMIT_AGENT", "100/minute;1/second"),
        ("RATE_LIMIT_SOURCE", "none"),
        ("RATE_LIMIT_STORAGE", "http://cache"),
        ("RATE_LIMIT_STORAGE", "redis://:password-1"),
        ("ALLOWED_SOURCES", "10.0.0.1/8"),
        ("ALLOWED_SOURCES", "elevenlabs.io"),
        ("ALLOWED_SOURCES", ","),
        ("TRUSTED_PROXIES", "elevenlabs"),
        ("TRUSTED_PROXIES", "0.0.0.0/0"),
        ("TRUSTED_PROXIES", "nginx"),
        ("DYNAMIC_VARIABLES", '{"a": null}'),
        ("DYNAMIC_VARIABLES", '{"a": {"b": 1}}'),
        ("DYNAMIC_VARIABLES", '{"": "x"}'),
        ("DYNAMIC_VARIABLES", '{"system__time": "x"}'),
        ("DYNAMIC_VARIABLES", '{"precall_call_id": "x"}'),
        ("DYNAMIC_VARIABLES", '{"a": "{nickname}"}'),
        ("DYNAMIC_VARIABLES", '{"a": "{name"}'),
        ("DYNAMIC_VARIABLES", '{"a": "name}"}'),
        ("DYNAMIC_VARIABLES", '{"a": "{name|{phone_number}}"}'),
        ("DYNAMIC_VARIABLES", '{"a": "{}"}'),
    ],
)
def test_refused(name: str, value: str) -> None:
    """A variable that makes no sense is named, in one line."""
    with pytest.raises(EnvironmentInvalid) as fault:
        read(Settings, LEAST | {name: value})

    assert name in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("number", ["020 7654321", "+10000000000", "sip:reception@203.0.113.7"])
def test_own_number_is_not_repeated(number: str) -> None:
    """A number of our own that is none is a fault whose text says what to change, and not the number."""
    with pytest.raises(EnvironmentInvalid, match=r"OWN_NUMBERS.*DEFAULT_REGION") as fault:
        read(Settings, LEAST | {"OWN_NUMBERS": number})

    assert number not in str(fault.value)


def test_every_fault_is_named() -> None:
    """All variables at fault are named at once."""
    with pytest.raises(EnvironmentInvalid) as fault:
        read(Settings, {"PRECALL_WEBHOOK_PORT": "x", "DYNAMIC_VARIABLES": "x", "LOG_FORMAT": "x"})

    for name in ("ELEVENLABS_WEBHOOK_SECRET", "PRECALL_WEBHOOK_PORT", "DYNAMIC_VARIABLES", "LOG_FORMAT"):
        assert name in str(fault.value)
