"""What the provider refuses, and in which shape, over plain HTTP."""

from typing import Any

import httpx
import pytest

from emulator import Emulator

WAV = b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"
CREATE = "/v1/voices/add"
AGENT = "/v1/convai/agents/agent_demo"


def sample(content: bytes = WAV, filename: str | None = "sample.wav") -> tuple[str, Any]:
    """Give one file part of a form."""
    return ("files", (filename, content, "audio/wav"))


async def create(http: httpx.AsyncClient, *files: tuple[str, Any], **fields: str) -> httpx.Response:
    """Post the form that makes a voice."""
    return await http.post(CREATE, data={"name": "Ana", **fields}, files=list(files))


async def test_missing_key(url: str) -> None:
    """Refuses a call without a key in the current shape, whose request id is the trace id."""
    async with httpx.AsyncClient(verify=False, base_url=url) as stranger:
        reply = await stranger.get("/v1/voices")

    detail = reply.json()["detail"]
    assert (401, "authentication_error", "missing_api_key") == (
        reply.status_code,
        detail["type"],
        detail["code"],
    )
    assert reply.headers["x-trace-id"] == detail["request_id"]
    assert (32, "us-central1") == (len(detail["request_id"]), reply.headers["x-region"])


async def test_unknown_path(http: httpx.AsyncClient) -> None:
    """Answers 404 with a detail where the API has no such path."""
    reply = await http.get("/v1/unheard-of")

    assert (404, ["detail"]) == (reply.status_code, list(reply.json()))
    assert 32 == len(reply.headers["x-trace-id"])


async def test_unknown_method(http: httpx.AsyncClient) -> None:
    """Answers 405 where the API has the path and not the method."""
    reply = await http.put(CREATE)

    assert (405, ["detail"]) == (reply.status_code, list(reply.json()))


async def test_file_without_name(http: httpx.AsyncClient) -> None:
    """Takes a file part without a file name for text."""
    reply = await create(http, sample(filename=None))

    assert (422, ["body", "files", 0], "Value error, Expected UploadFile, received: <class 'str'>") == (
        reply.status_code,
        reply.json()["detail"][0]["loc"],
        reply.json()["detail"][0]["msg"],
    )


async def test_missing_fields(http: httpx.AsyncClient) -> None:
    """Names every field that is missing."""
    reply = await http.post(CREATE, data={"description": "x"}, files=[("other", ("a", b"b", "c/d"))])

    assert (422, [["body", "name"], ["body", "files"]]) == (
        reply.status_code,
        [entry["loc"] for entry in reply.json()["detail"]],
    )


async def test_not_a_form(http: httpx.AsyncClient) -> None:
    """Misses the fields of a form in a body of JSON."""
    reply = await http.post(CREATE, json={"name": "Ana"})

    assert (422, 2) == (reply.status_code, len(reply.json()["detail"]))


@pytest.mark.parametrize(
    "content_type", ["multipart/form-data", "multipart/form-data; boundary=x"], ids=["no-boundary", "broken"]
)
async def test_unparsable_form(http: httpx.AsyncClient, content_type: str) -> None:
    """Answers 400 where a form cannot be read as one."""
    reply = await http.post(CREATE, content=b"--x\r\nnonsense", headers={"content-type": content_type})

    assert (400, {"detail": "There was an error parsing the body"}) == (reply.status_code, reply.json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", "[]"),
        ("labels", '{"age": 3}'),
        ("labels", "{"),
        ("remove_background_noise", "perhaps"),
        ("name", ""),
    ],
)
async def test_malformed_field(http: httpx.AsyncClient, emulator: Emulator, field: str, value: str) -> None:
    """Names the field that is malformed, and makes no voice."""
    reply = await create(http, sample(), **{field: value})

    assert (422, ["body", field], []) == (
        reply.status_code,
        reply.json()["detail"][0]["loc"],
        emulator.voices.custom,
    )


async def test_labels_null(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Takes the text null, which the vendor's client sends, for no labels."""
    reply = await create(http, sample(), labels="null")

    assert {} == emulator.voices[reply.json()["voice_id"]].labels


@pytest.mark.parametrize("content", [b"", b"/tmp/sample.wav", b"RIFF\x00\x00\x00\x00AVI "])
async def test_not_audio(http: httpx.AsyncClient, content: bytes) -> None:
    """Calls a file corrupted that does not begin like audio."""
    reply = await create(http, sample(), sample(content))

    assert (
        400,
        {
            "detail": {
                "status": "invalid_content",
                "message": "File upload is corrupted. Please ensure it is playable audio.",
            }
        },
    ) == (reply.status_code, reply.json())


@pytest.mark.parametrize(
    "head",
    [
        WAV,
        b"RF64\xff\xff\xff\xffWAVEds64\x1c\x00\x00\x00",
        b"BW64\xff\xff\xff\xffWAVEds64\x1c\x00\x00\x00",
        b"ID3\x04",
        b"\xff\xfb\x90\x00",
        b"OggS",
        b"fLaC",
        b"\x00\x00\x00\x20ftypM4A ",
        b"\x00\x00\x00\x08wide",
        b"\x1aE\xdf\xa3",
    ],
)
async def test_audio(http: httpx.AsyncClient, head: bytes) -> None:
    """Takes whatever begins like audio."""
    reply = await create(http, sample(head))

    assert 200 == reply.status_code


async def test_same_file_twice(http: httpx.AsyncClient) -> None:
    """Refuses the same file twice."""
    reply = await create(http, sample(), sample(filename="again.wav"))

    assert (400, "duplicate_files") == (reply.status_code, reply.json()["detail"]["status"])


async def test_no_slot(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Says how many slots there are when none is free, and counts no operation."""
    emulator.voices.limit = 1
    await create(http, sample())

    reply = await create(http, sample())

    assert (400, "voice_limit_reached", 1) == (
        reply.status_code,
        reply.json()["detail"]["status"],
        emulator.voices.monthly_used,
    )
    assert "maximum amount of custom voices (1 / 1)." in reply.json()["detail"]["message"]


async def test_no_operation(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Adds no more voices in a month than the plan says, deleted ones included."""
    emulator.voices.monthly_limit = 1
    made = await create(http, sample())
    await http.delete(f"/v1/voices/{made.json()['voice_id']}")

    reply = await create(http, sample())

    assert (403, "voice_add_edit_limit_reached", []) == (
        reply.status_code,
        reply.json()["detail"]["status"],
        emulator.voices.custom,
    )


async def test_premade_voice_stays(http: httpx.AsyncClient, emulator: Emulator) -> None:
    """Lets nobody delete a voice of the provider's own."""
    premade = next(iter(emulator.voices)).voice_id

    reply = await http.delete(f"/v1/voices/{premade}")

    assert (403, True) == (reply.status_code, premade in emulator.voices)


@pytest.mark.parametrize(
    ("content", "loc"),
    [
        (b'{"name": ', ["body", 0]),
        (b"[" * 100_000, ["body", 0]),
        (b"\xff", ["body", 0]),
        (b"[]", ["body"]),
        (b'{"name": 3}', ["body", "name"]),
        (b'{"tags": ["a", 3]}', ["body", "tags", 1]),
        (
            b'{"conversation_config": {"tts": {"voice_id": 3}}}',
            ["body", "conversation_config", "tts", "voice_id"],
        ),
        (
            b'{"conversation_config": {"agent": {"first_message": null}}}',
            ["body", "conversation_config", "agent", "first_message"],
        ),
        (b'{"conversation_config": {"tts": {"speed": 9}}}', ["body", "conversation_config", "tts", "speed"]),
        (b'{"platform_settings": {"overrides": null}}', ["body", "platform_settings", "overrides"]),
        (
            b'{"platform_settings": {"overrides": {"conversation_config_override": "x"}}}',
            ["body", "platform_settings", "overrides", "conversation_config_override"],
        ),
    ],
)
async def test_malformed_patch(http: httpx.AsyncClient, content: bytes, loc: list[str | int]) -> None:
    """Names the place of what is malformed in a change of an agent."""
    reply = await http.patch(AGENT, content=content, headers={"content-type": "application/json"})

    assert (422, loc) == (reply.status_code, reply.json()["detail"][0]["loc"])


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ({"page_size": 101}, "less_than_equal", "Input should be less than or equal to 100"),
        ({"page_size": 0}, "greater_than_equal", "Input should be greater than or equal to 1"),
        ({"page_size": "x"}, "int_type", "Input should be a valid integer"),
    ],
    ids=str,
)
async def test_number_in_a_query(
    http: httpx.AsyncClient, query: dict[str, Any], kind: str, message: str
) -> None:
    """Says of a number that is out of bounds which bound it is, and of what is no number that it is none."""
    reply = await http.get("/v2/voices", params=query)

    (told,) = reply.json()["detail"]
    assert (422, kind, message, ["query", "page_size"]) == (
        reply.status_code, told["type"], told["msg"], told["loc"],
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/voices/a%20b", "/v1/voices/a.b", "/v1/convai/agents/%C3%A9"])
async def test_malformed_id(http: httpx.AsyncClient, path: str) -> None:
    """Tells an id that nothing can have from one that nothing has."""
    reply = await http.get(path)

    assert (400, "bad_request", "invalid_uid") == (
        reply.status_code, reply.json()["detail"]["code"], reply.json()["detail"]["status"],
    )  # fmt: skip


async def test_bad_page_token(http: httpx.AsyncClient) -> None:
    """Refuses a page token that it did not give."""
    reply = await http.get("/v2/voices", params={"next_page_token": "x"})

    assert (400, "invalid_parameters") == (reply.status_code, reply.json()["detail"]["code"])


async def test_options(http: httpx.AsyncClient) -> None:
    """What may be done at a path is told to whoever has the key."""
    assert (204, "GET, OPTIONS") == (
        (told := await http.options("/v1/voices")).status_code,
        told.headers["allow"],
    )
