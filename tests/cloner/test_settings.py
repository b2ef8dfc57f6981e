import msgspec
import pytest

from cloner.database_url import address_problem
from cloner.settings import Settings
from environment import EnvironmentInvalid, Secret, read


def test_defaults() -> None:
    """Only the key must be given."""
    settings = read(Settings, {"ELEVENLABS_API_KEY": "key-1"})

    assert Secret("key-1") == settings.elevenlabs_api_key
    assert ("127.0.0.1", 50051) == (settings.cloner_host, settings.cloner_port)
    assert "https://api.elevenlabs.io" == settings.elevenlabs_base_url
    assert 10 * 1024 * 1024 == settings.max_sample_bytes
    assert 1.0 == settings.voice_clone_min_sound
    assert (False, 30.0) == (settings.require_consent, settings.enrolment_keep_days)


def test_every_fault_is_named() -> None:
    """One line names every variable at fault, and shows no value."""
    with pytest.raises(EnvironmentInvalid) as caught:
        read(
            Settings,
            {
                "CLONER_PORT": "99999",
                "AGENT_UPDATE": "sometimes",
                "ELEVENLABS_BASE_URL": "api.elevenlabs.io",
                "VOICE_CLONE_MIN_DURATION": "secret-value",
            },
        )

    told = str(caught.value)
    for name in (
        "ELEVENLABS_API_KEY", "CLONER_PORT", "AGENT_UPDATE", "ELEVENLABS_BASE_URL", "VOICE_CLONE_MIN_DURATION",
    ):  # fmt: skip
        assert name in told
    assert "secret-value" not in told
    assert "\n" not in told


@pytest.mark.parametrize("region", ["31", "Netherlands", "UK"])
def test_no_region(region: str) -> None:
    """A region that is no country's is a fault, by its name."""
    with pytest.raises(EnvironmentInvalid, match="DEFAULT_REGION"):
        read(Settings, {"ELEVENLABS_API_KEY": "key-1", "DEFAULT_REGION": region})


@pytest.mark.parametrize("message", ["Hallo {nam}", "Hallo {}", "   {x|y}"])
def test_greeting_with_an_unknown_placeholder(message: str) -> None:
    """A typing error in the greeting stops the process and is not read out to a caller."""
    with pytest.raises(EnvironmentInvalid, match="DEFAULT_FIRST_MESSAGE"):
        read(Settings, {"ELEVENLABS_API_KEY": "key-1", "DEFAULT_FIRST_MESSAGE": message})


@pytest.mark.parametrize("quote", ["'", '"', "`"])
def test_greeting_in_quotes(quote: str) -> None:
    """Quotes that Docker leaves around a greeting are not read out to a caller; those within it are."""
    told = {"ELEVENLABS_API_KEY": "key-1", "DEFAULT_FIRST_MESSAGE": f"{quote}Hallo {{name}}!{quote}"}
    with pytest.raises(
        EnvironmentInvalid,
        match=r"^DEFAULT_FIRST_MESSAGE must not stand in quotes: they would be part of it$",
    ):
        read(Settings, told)

    for message in ("'t Is {name}!", "Hallo {name|'vriend'}"):
        assert message == read(Settings, told | {"DEFAULT_FIRST_MESSAGE": message}).default_first_message


PLAIN_TEXT = "or CLONER_INSECURE=true says that plain text will do"


def test_faults_between_settings_are_named_with_the_others() -> None:
    """One start tells of all there is to mend, also where some settings are malformed in themselves."""
    with pytest.raises(EnvironmentInvalid) as caught:
        read(
            Settings,
            {
                "CLONER_HOST": "0.0.0.0",
                "DATABASE_URL": "postgresql://localhost/precall",
                "DEFAULT_FIRST_MESSAGE": "Hallo {nam}",
                "VOICE_CLONE_MIN_DURATION": "700",
                "AGENT_UPDATE": "maybe",
            },
        )

    assert [
        "ELEVENLABS_API_KEY is required",
        "AGENT_UPDATE must be one of: auto, always, never",
        "DEFAULT_FIRST_MESSAGE must be a sentence with {name} as its only placeholder",
        "VOICE_CLONE_MIN_DURATION must be at most VOICE_CLONE_MAX_DURATION",
        "CLONER_TOKEN or CLONER_CLIENTS is required unless CLONER_HOST is a loopback address",
        f"CLONER_TLS_CERT is required unless CLONER_HOST is a loopback address, {PLAIN_TEXT}",
        "CALLER_HASH_KEY is required unless DATABASE_URL is SQLite",
    ] == str(caught.value).split("; ")


@pytest.mark.parametrize(
    "value", ["inf", "-inf", "nan", "1e999", "-1", "1e300", "\u0663", "0x10", "1_0", "many"]
)
def test_numbers_that_nobody_means(value: str) -> None:
    """Every number is finite, written plainly, and within what the program can count with."""
    names = [
        field.name.upper()
        for field in msgspec.structs.fields(Settings)
        if field.type is not bool
        and isinstance(field.default, int | float)
        and not isinstance(field.default, bool)
    ]
    with pytest.raises(EnvironmentInvalid) as caught:
        read(Settings, {"ELEVENLABS_API_KEY": "key-1", **dict.fromkeys(names, value)})

    assert 20 < len(names)
    assert names == [told.split()[0] for told in str(caught.value).split("; ")]


@pytest.mark.parametrize("text", ["True", "TRUE", "1"])
def test_words_in_any_case(text: str) -> None:
    """What is a word may be written in capitals or without."""
    settings = read(
        Settings,
        {"ELEVENLABS_API_KEY": "k", "LOG_LEVEL": "warning", "AGENT_UPDATE": "Never", "REQUIRE_CONSENT": text},
    )

    assert ("WARNING", "never", True) == (settings.log_level, settings.agent_update, settings.require_consent)


def test_service_link() -> None:
    """What Kubernetes sets for a service called cloner counts as not set."""
    environ = {"ELEVENLABS_API_KEY": "k", "CLONER_PORT": "tcp://10.0.0.1:50051"}

    assert 50051 == read(Settings, environ).cloner_port


def test_several_tokens() -> None:
    """One token can take the place of another while both are taken."""
    environ = {"ELEVENLABS_API_KEY": "k", "CLONER_TOKEN": "token-of-the-past, token-of-the-future"}

    tokens = (Secret("token-of-the-past"), Secret("token-of-the-future"))
    assert tokens == read(Settings, environ).cloner_token


def test_secret_from_a_file(tmp_path) -> None:
    """A secret may stand in a file, with the line end that editors leave."""
    (tmp_path / "key").write_text("key-2\n")

    settings = read(Settings, {"ELEVENLABS_API_KEY_FILE": str(tmp_path / "key")})

    assert "key-2" == settings.elevenlabs_api_key.reveal()


def test_database_url_from_a_file(tmp_path) -> None:
    """An address that holds a password may stand in a file, and is not shown with the settings."""
    (tmp_path / "url").write_text("postgresql://precall:secret-of-mine@db/precall\n")
    environ = {"ELEVENLABS_API_KEY": "k", "CALLER_HASH_KEY": "key-of-the-hashes"}

    settings = read(Settings, environ | {"DATABASE_URL_FILE": str(tmp_path / "url")})

    assert "postgresql://precall:secret-of-mine@db/precall" == settings.database_url
    assert "secret-of-mine" not in repr(settings)


def test_missing_secret_file() -> None:
    """A file that cannot be read is named by its variable."""
    with pytest.raises(EnvironmentInvalid, match="ELEVENLABS_API_KEY_FILE"):
        read(Settings, {"ELEVENLABS_API_KEY_FILE": "/nowhere/key"})


def test_secret_does_not_show() -> None:
    """Neither printing the settings nor an exception's text shows the key."""
    assert "key-1" not in repr(read(Settings, {"ELEVENLABS_API_KEY": "key-1"}))


def test_empty_counts_as_unset() -> None:
    """A variable set to nothing, as Compose passes one on, leaves the default."""
    settings = read(Settings, {"ELEVENLABS_API_KEY": "key-1", "CLONER_PORT": ""})

    assert 50051 == settings.cloner_port


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"CLONER_HOST": "0.0.0.0"}, "CLONER_TOKEN"),
        ({"CLONER_HOST": "cloner.internal"}, "CLONER_TOKEN"),
        ({"CLONER_TOKEN": "short"}, "CLONER_TOKEN"),
        ({"CLONER_TOKEN": "long-enough-to-be-one,short"}, "CLONER_TOKEN"),
        ({"CLONER_TOKEN": " , "}, "CLONER_TOKEN"),
        ({"CALLER_HASH_KEY": "fifteen-letters"}, "CALLER_HASH_KEY"),
        ({"CLONER_HOST": "::"}, "CLONER_TOKEN"),
        ({"CLONER_HOST": "tcp.example:50051"}, "CLONER_HOST"),
        ({"DATABASE_URL": "postgresql://localhost/precall"}, "CALLER_HASH_KEY"),
        ({"DATABASE_URL": "mysql://localhost/precall"}, "DATABASE_URL"),
        ({"PRECALL_DEPLOYMENT": "My Deployment"}, "PRECALL_DEPLOYMENT"),
    ],
    ids=str,
)
def test_what_must_go_together(environ: dict[str, str], named: str) -> None:
    """A server that others can reach needs a token, a database that is shared a key."""
    with pytest.raises(EnvironmentInvalid, match=named):
        read(Settings, {"ELEVENLABS_API_KEY": "key-1", **environ})


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "LOCALHOST", "localhost.", "::1", "[::1]", "127.1.2.3", "::ffff:127.0.0.1"],
)
def test_loopback_needs_no_token(host: str) -> None:
    """Who is on this machine is let in."""
    assert host == read(Settings, {"ELEVENLABS_API_KEY": "key-1", "CLONER_HOST": host}).cloner_host


@pytest.mark.parametrize("seconds", ["-1", "601", "loud"])
def test_more_sound_than_a_sample_can_have(seconds: str) -> None:
    """What no sample could keep to stops the process."""
    with pytest.raises(EnvironmentInvalid, match="VOICE_CLONE_MIN_SOUND"):
        read(Settings, {"ELEVENLABS_API_KEY": "key-1", "VOICE_CLONE_MIN_SOUND": seconds})


SECRET = "hunter2"


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///:memory:", "sqlite://", "sqlite:///", "sqlite:///folder/", "sqlite://relative.sqlite3",
        "sqlite:///file::memory:?cache=shared", "sqlite:///precall.sqlite3?mode=memory", "mysql://x/y", "precall.sqlite3",
        f"postgresql://precall:{SECRET}@ss@db/precall", f"postgresql://precall:{SECRET}/word@db/precall",
        f"postgresql://precall:{SECRET}?word@db/precall", f"postgresql://precall:{SECRET}%zz@db/precall",
        f"postgresql://precall:{SECRET}@db/precall?nonsense=1", f"postgresql://precall:{SECRET}@db:port/precall",
        f"postgresql://precall:{SECRET}@db:70000/precall", f"postgresql://precall:{SECRET}@db/precall?connect_timeout=soon",
        f"postgresql://precall:{SECRET}@[::1/precall",
    ],
)  # fmt: skip
def test_database_url_that_cannot_be_right(url: str) -> None:
    """It is refused before anything is opened, in one line that names the variable and holds no part of the URL."""
    environ = {"ELEVENLABS_API_KEY": "key-1", "CALLER_HASH_KEY": "0123456789abcdef", "DATABASE_URL": url}
    with pytest.raises(EnvironmentInvalid) as caught:
        read(Settings, environ)

    assert str(caught.value).startswith("DATABASE_URL: ")
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///precall.sqlite3", "sqlite:////var/lib/precall/precall.sqlite3", "sqlite+aiosqlite:///precall.sqlite3",
        "sqlite:///a folder/precall@home.sqlite3", "postgres://db/precall", "postgresql+asyncpg://db/precall",
        "postgresql://precall:p%40ss%2Fword%3F%25@db/precall", "postgresql://precall:p:a#ss@db/precall",
        "postgresql://u@[::1]:5432,db:5433/precall?target_session_attrs=read-write&sslmode=require",
        "postgresql:///precall?host=/var/run/postgresql&user=precall@server",
        "postgresql://u@db/x?application_name=desk&connect_timeout=3&options=-c%20a%3Db&channel_binding=require",
        "postgresql://u@db/x?pgbouncer=true&connection_limit=1", "postgresql://u@db/x?sslmode=require&supa=base-pooler.x",
    ],
)  # fmt: skip
def test_database_url_that_can_be_right(url: str) -> None:
    """Whatever libpq takes is taken, and a path is a path."""
    environ = {"ELEVENLABS_API_KEY": "key-1", "CALLER_HASH_KEY": "0123456789abcdef", "DATABASE_URL": url}

    assert url == read(Settings, environ).database_url


@pytest.mark.parametrize("query", ["schema=secret-of-mine", "ssl=require", "sslmode", "=secret-of-mine"])
def test_parameter_of_another_client(query: str) -> None:
    """What libpq does not know is told as such, and not shown."""
    problem = address_problem(f"postgresql://u@db/x?{query}")

    assert "behind the ? stands what is no parameter of libpq; for TLS that is sslmode=require" == problem
