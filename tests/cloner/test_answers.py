"""What ElevenLabs might answer, whoever stands in its place."""

import asyncio
import gzip
import json
import resource
import struct
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode

from cloner.provider import failures
from cloner.provider.answers import (
    read_agent,
    read_deleted,
    read_new_voice,
    read_page,
    read_subscription,
    read_voice,
)
from cloner.provider.elevenlabs import AgentVoice, ElevenLabs
from cloner.provider.failures import ProtocolBroken, ProviderFailure, classify
from tests.cloner.adversary import Adversary, client_of, http_answer

Ask = Callable[[ElevenLabs, float], Awaitable[Any]]

ASKS: dict[str, Ask] = {
    "create": lambda provider, deadline: provider.create_voice(
        name="n", description="d", labels={}, filename="f", media_type="audio/mpeg", sample=b"s", deadline=deadline
    ),
    "get voice": lambda provider, deadline: provider.get_voice("voice", deadline=deadline),
    "search": lambda provider, deadline: provider.search_voices("marker", deadline=deadline),
    "delete": lambda provider, deadline: provider.delete_voice("voice", deadline=deadline),
    "read agent": lambda provider, deadline: provider.read_agent("agent", deadline=deadline),
    "update agent": lambda provider, deadline: provider.update_agent(
        "agent", AgentVoice("voice", "Hi"), deadline=deadline
    ),
    "subscription": lambda provider, deadline: provider.subscription(deadline=deadline),
}  # fmt: skip
CHANGES = ("create", "delete", "update agent")
AGENT = {"conversation_config": {"tts": {"voice_id": "v"}, "agent": {"first_message": "Hi"}}}


@pytest.fixture
def adversary() -> Adversary:
    """The adversary; `provider` is a client of it."""
    return Adversary()


@pytest.fixture
async def provider(adversary: Adversary) -> AsyncIterator[ElevenLabs]:
    """A client that tries once."""
    async with adversary.listening() as url, client_of(url) as client:
        yield client


def soon(seconds: float = 20.0) -> float:
    """A deadline."""
    return asyncio.get_running_loop().time() + seconds


def encoded(data: bytes, times: int) -> bytes:
    """The data, compressed as often as that, and of the same length at any time: tests are named by it."""
    for _ in range(times):
        data = gzip.compress(data, 9, mtime=0)
    return data


def zeros(mebibytes: int) -> bytes:
    """So much of nothing, compressed: a piece of it, time and again, which is soon made."""
    piece, check = bytes(1_048_576), 0
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed_piece = packer.compress(piece) + packer.flush(zlib.Z_FULL_FLUSH)
    for _ in range(mebibytes):
        check = zlib.crc32(piece, check)
    ends = packer.flush() + struct.pack("<II", check, mebibytes * len(piece))
    return b"\x1f\x8b\x08" + bytes(7) + packed_piece * mebibytes + ends


def test_zeros() -> None:
    """What is made in pieces is what it says: otherwise it would be refused for that."""
    assert bytes(3 * 1_048_576) == gzip.decompress(zeros(3))


@cache
def packed() -> bytes:
    """An answer of 64 MiB in a few kilobytes."""
    return http_answer(zeros(64), "Content-Encoding: gzip")


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize(
    "answer",
    [
        http_answer(b"<html><body>Welcome</body></html>", "Content-Type: text/html"),
        http_answer(b""),
        http_answer(b"[]"),
        http_answer(b"null"),
        http_answer(b'"ok"'),
        http_answer(b"[" * 60_000),
        http_answer(b"{}" + bytes(8), status="201 Created"),
        b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n",
        http_answer(b"", "Location: http://127.0.0.1:1/v1/voices", status="302 Found"),
        http_answer(b"", "Location: ://", status="308 Permanent Redirect"),
        http_answer(b"<html>nothing here</html>", status="404 Not Found"),
        http_answer(b'{"detail":"Not Found"}', status="404 Not Found"),
        http_answer(b'{"detail":"Gone"}', status="410 Gone"),
        http_answer(encoded(b"{}", 2), "Content-Encoding: gzip, gzip"),
        http_answer(encoded(b"{}", 2), "Content-Encoding: gzip", "Content-Encoding: gzip"),
        http_answer(zlib.compress(b"{}"), "Content-Encoding: deflate"),
        http_answer(b"\x8b\x00\x80{}\x03", "Content-Encoding: br"),
        http_answer(b"{}", "Content-Encoding: zstd"),
        http_answer(b"not gzip", "Content-Encoding: gzip"),
        http_answer(encoded(b"{}", 1)[:-6], "Content-Encoding: gzip"),
        None,  # a bomb, which takes long to make
        http_answer(b"{}", f"X-Long: {'x' * 200_000}"),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    ],
    ids=lambda answer: "a bomb" if answer is None else repr(answer[:60]),
)  # fmt: skip
async def test_answers_that_nobody_can_read(
    adversary: Adversary, provider: ElevenLabs, ask: str, answer: bytes | None
) -> None:
    """Are told as such, asked for once, and after a success say that the work may be done."""
    answer = packed() if answer is None else answer
    adversary.answer = answer

    with pytest.raises(ProtocolBroken) as caught:
        await ASKS[ask](provider, soon())

    assert 1 == len(adversary.heads)
    if answer.startswith(b"HTTP/1.1 2"):
        assert caught.value.maybe_done is (ask in CHANGES)


@pytest.mark.parametrize(
    "answer",
    [http_answer(b"<html></html>"), http_answer(b"[]"), http_answer(b"not gzip", "Content-Encoding: gzip")],
    ids=repr,
)
async def test_trace_of_an_answer_that_nobody_can_read(
    adversary: Adversary, spans: Any, answer: bytes
) -> None:
    """The request is what failed in the trace, although its status is 200."""
    adversary.answer = answer
    async with adversary.listening() as url, client_of(url, tracing=spans.provider("cloner")) as provider:
        for ask in ASKS.values():
            with pytest.raises(ProtocolBroken):
                await ask(provider, soon())

    assert [("PROVIDER_PROTOCOL", StatusCode.ERROR)] * len(ASKS) == failed(spans)


async def test_trace_of_a_redirection(adversary: Adversary, spans: Any) -> None:
    """Nobody goes there, so the request has failed, with its status as the error."""
    adversary.answer = http_answer(b"", "Location: http://127.0.0.1:1/", status="307 Temporary Redirect")
    async with adversary.listening() as url, client_of(url, tracing=spans.provider("cloner")) as provider:
        for ask in ASKS.values():
            with pytest.raises(ProtocolBroken):
                await ask(provider, soon())

    assert [("307", StatusCode.ERROR)] * len(ASKS) == failed(spans)


def failed(spans: Any) -> list[tuple[str | None, StatusCode]]:
    """How each request has failed in its trace."""
    return [(span.attributes.get("error.type"), span.status.status_code) for span in spans.finished()]


async def test_bombs_stay_small(adversary: Adversary, provider: ElevenLabs) -> None:
    """A few KB that stand for gigabytes take no memory."""
    bomb = zeros(1_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for answer in (
        http_answer(bomb, "Content-Encoding: gzip"),
        http_answer(gzip.compress(bomb, 9), "Content-Encoding: gzip, gzip"),
        http_answer(bomb, "Content-Encoding: gzip", status="400 Bad Request"),
    ):
        adversary.answer = answer
        for ask in ASKS.values():
            with pytest.raises(ProviderFailure):
                await ask(provider, soon())

    assert 64 * 1024 > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


async def test_one_gzip_is_read(adversary: Adversary, provider: ElevenLabs) -> None:
    """Nothing is asked to be compressed; what is compressed once all the same is read."""
    adversary.answer = http_answer(gzip.compress(json.dumps(AGENT).encode()), "Content-Encoding: gzip")

    assert AgentVoice("v", "Hi") == (await provider.read_agent("agent", deadline=soon())).voice
    assert "accept-encoding: identity\r\n" in adversary.heads[0].lower()


@pytest.mark.parametrize("ask", ASKS)
async def test_endless_answers(adversary: Adversary, provider: ElevenLabs, ask: str) -> None:
    """No more is read than an answer of that kind may have."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        await adversary.send(writer, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        while True:
            await adversary.send(writer, chunk)

    adversary.answer = answer

    with pytest.raises(ProtocolBroken):
        await ASKS[ask](provider, soon())

    # What the sockets hold comes on top.
    assert adversary.sent < 16 * 1_048_576


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 10000\r\n\r\n", b"x"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    ],
    ids=str,
)
async def test_dripping_answers(
    adversary: Adversary, provider: ElevenLabs, begin: bytes, drip: bytes
) -> None:
    """A byte now and then prolongs nothing."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        await adversary.send(writer, begin)
        while True:
            await adversary.send(writer, drip)
            await asyncio.sleep(0.02)

    adversary.answer = answer
    began = time.monotonic()

    with pytest.raises(failures.TimedOut):
        await provider.get_voice("voice", deadline=soon(0.5))

    assert 5 > time.monotonic() - began


async def test_redirects_take_no_key_along(adversary: Adversary, provider: ElevenLabs) -> None:
    """Wherever an answer points, nobody goes there."""
    other = Adversary()
    async with other.listening() as url:
        for status in ("301 Moved", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"):
            adversary.answer = http_answer(b"{}", f"Location: {url}/", status=status)
            for ask in ASKS.values():
                with pytest.raises(ProtocolBroken):
                    await ask(provider, soon())

    assert [] == other.heads


@pytest.mark.parametrize(
    "voice_id",
    ["", ".", "..", "../../v1/user", "a/b", "a\r\nb", "a\0b", "x" * 65, "x" * 200, "vo ice", "ünï", "\ud800",
     "a%2e", None, 7, True, ["v"], {"id": "v"}],
    ids=repr,
)  # fmt: skip
def test_ids_that_do_not_fit(voice_id: Any) -> None:
    """An id is at most 64 letters, digits, "_" and "-"; wherever one is read nothing else gets further."""
    told = json.dumps({"voice_id": voice_id, "requires_verification": False}).encode()
    with pytest.raises(ProtocolBroken):
        read_new_voice(told)
    with pytest.raises(ProtocolBroken):
        read_voice(told, "voice")

    page = read_page(json.dumps({"voices": [{"voice_id": voice_id}, {"voice_id": "good"}]}).encode())
    assert ["good"] == [voice.voice_id for voice in page.voices]

    agent = {"conversation_config": {"tts": {"voice_id": voice_id}, "agent": {"first_message": "Hi"}}}
    spoken = read_agent(json.dumps(agent).encode(), "agent").voice
    # No voice at all is what some agents have.
    assert spoken == (AgentVoice(None, "Hi") if voice_id in ("", None) else None)


def test_voices_that_were_added_to_a_page() -> None:
    """Default voices in front count for nothing: they hide no voice that was asked for."""
    added = [{"voice_id": f"default{number}", "category": "premade"} for number in range(21)]
    asked = [{"voice_id": f"cloned{number}", "category": "cloned"} for number in range(5)]
    # A category that nobody knows yet is no reason to miss a voice; one that is none is no category.
    odd = [{"voice_id": "odd1", "category": "new"}, {"voice_id": "odd2", "category": ["premade"]}]

    page = read_page(json.dumps({"voices": [*added, *odd, *asked]}).encode(), most=4)

    assert ["odd1", "odd2", "cloned0", "cloned1"] == [voice.voice_id for voice in page.voices]


@pytest.mark.parametrize("fits", ["x", "x" * 64, "c38kUX8pkfYO2kHyqfFy", "_-_", "..."], ids=repr)
def test_ids_that_fit(fits: str) -> None:
    """The shortest and the longest id are taken, and dots alone are none."""
    told = json.dumps({"voice_id": fits}).encode()
    if fits == "...":
        with pytest.raises(ProtocolBroken):
            read_new_voice(told)
    else:
        assert fits == read_new_voice(told).voice_id


async def test_ids_are_checked_before_they_are_part_of_a_path(
    adversary: Adversary, provider: ElevenLabs
) -> None:
    """Whatever stands in a database, nothing but voices is deleted."""
    for voice_id in ("", ".", "..", "../../v1/user", "a\r\nb", "a/b", "a?b"):
        with pytest.raises(ProtocolBroken):
            await provider.delete_voice(voice_id, deadline=soon())

    assert [] == adversary.heads


@pytest.mark.parametrize(
    "greeting", ["Hi\0there", "Hi \ud83d", "x" * 70_000, 7, ["Hi"], {"text": "Hi"}], ids=lambda g: repr(g)[:20]
)  # fmt: skip
def test_greetings_that_cannot_be_kept(greeting: Any) -> None:
    """An agent whose greeting could not be given back is known for what may be overridden, and no more."""
    told = {
        "conversation_config": {"tts": {"voice_id": "v"}, "agent": {"first_message": greeting}},
        "platform_settings": {"overrides": {"conversation_config_override": {"tts": {"voice_id": True}}}},
    }

    agent = read_agent(json.dumps(told).encode(), "agent")

    assert (None, frozenset({"agent.first_message"})) == (agent.voice, agent.refused_leaves)


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "half an emoji \\ud83d", %s}',
        '{"temperature": NaN, "limit": -Infinity, %s}',
        '{"half an emoji \\ud83d": 1, %s}',
        "\ufeff{%s}",
    ],
    ids=repr,
)
def test_what_nobody_needs_hides_nothing(text: str) -> None:
    """What is not read need not be readable."""
    body = text % json.dumps(AGENT)[1:-1]

    assert AgentVoice("v", "Hi") == read_agent(body.encode(), "agent").voice
    assert AgentVoice("v", "Hi") == read_agent(body.encode().replace(b"half", b"\xff"), "agent").voice


@pytest.mark.parametrize("name", [None, 7, ["n"], "\ud83d"], ids=repr)
def test_name_of_a_voice(name: Any) -> None:
    """No voice is missed because of its name, which nobody reads."""
    told = {"voice_id": "v", "name": name}

    assert "v" == read_voice(json.dumps(told).encode(), "v").voice_id
    assert ["v"] == [voice.voice_id for voice in read_page(json.dumps({"voices": [told]}).encode()).voices]


@pytest.mark.parametrize("part", ["\ud83d", ["\ud83d"], {"tts": "\ud83d"}, {"\ud83d": 1, "tts": 7}], ids=repr)
def test_half_an_emoji_where_something_else_should_be(part: Any) -> None:
    """Is what any other text is there: an agent of which the voice is not told, a voice that is not listed."""
    agent = AGENT | {"conversation_config": part}
    listed = [{"voice_id": "v", "voice_verification": "\ud83d"}, {"voice_id": "w"}]
    page = {"voices": listed, "has_more": False}

    assert read_agent(json.dumps(agent).encode(), "agent").voice is None
    assert ["w"] == [voice.voice_id for voice in read_page(json.dumps(page).encode()).voices]


def test_bytes_that_are_no_text_are_no_greeting() -> None:
    """A greeting is never kept other than as it is."""
    body = json.dumps(AGENT).encode().replace(b"Hi", b"H\xff")

    assert read_agent(body, "agent").voice is None


@pytest.mark.parametrize(
    "body", [{}, {"status": "error"}, {"status": None}, {"status": ["ok"]}, {"ok": True}], ids=str
)
def test_deletions_that_are_not_said_to_be_done(body: Any) -> None:
    """A deletion counts where ElevenLabs says `ok`."""
    with pytest.raises(ProtocolBroken):
        read_deleted(json.dumps(body).encode())


@pytest.mark.parametrize("verification", ["yes", 1, None, [], {"required": True}, "false"], ids=repr)
def test_verification_of_no_kind(verification: Any) -> None:
    """Whether a voice may speak is never guessed."""
    with pytest.raises(ProtocolBroken):
        read_new_voice(json.dumps({"voice_id": "v", "requires_verification": verification}).encode())


@pytest.mark.parametrize("body", ["{}", '{"detail": {"status": "invalid_api_key"}}', '{"voice_limit": null}'])
def test_account_of_nobody(body: str) -> None:
    """An answer that says nothing of an account is not taken for one."""
    with pytest.raises(ProtocolBroken):
        read_subscription(body.encode())


@pytest.mark.parametrize("token", ["a b", "x" * 3_000, "\0", "\ud800", "é"], ids=lambda t: repr(t)[:12])
def test_page_tokens_of_no_kind(token: str) -> None:
    """A token is sent back, so it is looked at first."""
    with pytest.raises(ProtocolBroken):
        read_page(json.dumps({"voices": [], "has_more": True, "next_page_token": token}).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["voice_id", "voices", "labels", "agent_id", "has_more", "next_page_token", "requires_verification", "status",
             "conversation_config", "tts", "agent", "first_message", "platform_settings", "overrides", "detail",
             "conversation_config_override", "next_character_count_reset_unix", "created_at_unix", "code", "loc",
             "voice_verification", "message", "type"]
        ) | st.text(st.characters(), max_size=5),
        inner, max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip
READS: list[Callable[[bytes], object]] = [
    read_new_voice, lambda body: read_voice(body, "v"), read_page, read_deleted,
    lambda body: read_agent(body, "agent"), read_subscription,
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=200)))
def test_any_answer(body: bytes) -> None:
    """Is read or is a ProtocolBroken, and as a refusal it is some failure; nothing else is ever raised."""
    for read in READS:
        try:
            read(body)
        except ProtocolBroken:
            continue
    for status in (400, 404, 422, 500):
        failure = classify(status, {}, body, refused=failures.SampleRejected, gone={})
        assert isinstance(failure, ProviderFailure)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=100)),
    status=st.sampled_from([200, 201, 204, 302, 400, 401, 404, 409, 422, 429, 500]),
    ask=st.sampled_from(sorted(ASKS)),
)
async def test_any_answer_over_the_wire(body: bytes, status: int, ask: str) -> None:
    """A client raises what it says it raises, whatever is sent."""
    adversary = Adversary()
    adversary.answer = http_answer(b"" if status == 204 else body, status=f"{status} Some Status")
    async with adversary.listening() as url, client_of(url) as provider:
        try:
            await ASKS[ask](provider, soon())
        except ProviderFailure:
            return
