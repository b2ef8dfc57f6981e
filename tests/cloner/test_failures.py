import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloner.provider import failures
from cloner.provider.failures import classify

GONE = {"agent_not_found": failures.AgentNotFound, "voice_not_found": failures.VoiceNotFound}

# Bodies as clients of the live service have seen them, and what an operator or a caller can do about each.
SEEN = [
    (400, {"type": "payment_required", "code": "paid_plan_required", "status": "can_not_use_instant_voice_cloning",
           "message": "Your subscription does not include instant voice cloning."}, failures.PlanLimit),
    (400, {"status": "voice_limit_reached", "message": "You have reached your maximum amount of custom voices (10 / 10)."},
     failures.SlotsExhausted),
    (400, {"type": "invalid_request", "code": "bad_request", "status": "bad_request",
           "message": "You have reached your maximum amount of custom voices (10 / 10)."}, failures.SlotsExhausted),
    (403, {"status": "voice_add_edit_limit_reached", "message": "..."}, failures.MonthlyLimit),
    (400, {"status": "voice_add_edit_limit_reached", "message": "..."}, failures.MonthlyLimit),
    (400, {"status": "invalid_content", "message": "File upload is corrupted."}, failures.SampleRejected),
    (400, {"type": "validation_error", "code": "audio_too_short", "message": "..."}, failures.SampleRejected),
    (401, {"status": "invalid_api_key", "message": "Invalid API key"}, failures.Unauthorized),
    (401, {"code": "unauthorized", "status": "missing_permissions", "message": "..."}, failures.Unauthorized),
    (401, {"status": "quota_exceeded", "message": "This request exceeds your quota of 10000."}, failures.PlanLimit),
    (402, {"type": "payment_required", "code": "insufficient_credits"}, failures.PlanLimit),
    (403, {"type": "authorization_error", "code": "feature_not_available"}, failures.PlanLimit),
    (403, {"type": "authorization_error", "code": "insufficient_permissions"}, failures.Unauthorized),
    (404, {"status": "agent_not_found", "message": "Agent not found"}, failures.AgentNotFound),
    (404, {"status": "voice_not_found", "message": "A voice with the voice_id X was not found."}, failures.VoiceNotFound),
    (400, {"status": "voice_not_found", "message": "..."}, failures.VoiceNotFound),
    (409, {"type": "conflict", "code": "concurrent_modification"}, failures.Busy),
    (429, {"type": "rate_limit_error", "code": "concurrent_limit_exceeded", "status": "too_many_concurrent_requests"},
     failures.Busy),
    (429, {"code": "system_busy"}, failures.Busy),
    (500, {"type": "internal_error", "code": "internal_error"}, failures.Unavailable),
    (503, {"type": "service_unavailable", "code": "maintenance"}, failures.Unavailable),
]  # fmt: skip


@pytest.mark.parametrize(("status", "detail", "expected"), SEEN)
def test_seen_bodies(status: int, detail: dict[str, str], expected: type[failures.ProviderFailure]) -> None:
    """Reads each body that was seen on the wire, whatever its HTTP status."""
    body = json.dumps({"detail": detail}).encode()

    failure = classify(status, {}, body, refused=failures.SampleRejected, gone=GONE)

    assert expected is type(failure)


FASTAPI_FILES = {
    "detail": [{"loc": ["body", "files", 0], "msg": "Expected UploadFile", "type": "value_error"}]
}
FASTAPI_NAME = {"detail": [{"loc": ["body", "name"], "msg": "Field required", "type": "missing"}]}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (422, json.dumps(FASTAPI_FILES).encode(), failures.SampleRejected),
        (422, json.dumps(FASTAPI_NAME).encode(), failures.ProtocolBroken),
        (400, b'{"detail": "Something about the audio"}', failures.SampleRejected),
        (401, b'{"detail": "Unauthorized"}', failures.Unauthorized),
        (402, b"", failures.PlanLimit),
        (403, b"<html><title>Attention Required! | Cloudflare</title></html>", failures.ProtocolBroken),
        (403, b"", failures.ProtocolBroken),
        (403, b'{"detail": "Forbidden"}', failures.Unauthorized),
        (429, b"slow down", failures.Busy),
        (502, b"<html><body>Bad Gateway</body></html>", failures.Unavailable),
        (503, b"", failures.Unavailable),
        (404, b"<html>nope</html>", failures.ProtocolBroken),
        (302, b"", failures.ProtocolBroken),
        (418, b"{}", failures.ProtocolBroken),
        (400, b"[" * 100_000, failures.ProtocolBroken),
        (400, b"\xff\xfe", failures.ProtocolBroken),
        (400, b"<html><body>Bad Request</body></html>", failures.ProtocolBroken),
        (413, b"<html><body>Request Entity Too Large</body></html>", failures.SampleRejected),
        (400, b'{"detail": "There was an error parsing the body"}', failures.ProtocolBroken),
        (400, b'{"detail": {"code": "malformed_json", "status": "malformed_json"}}', failures.ProtocolBroken),
        (
            400,
            b'{"detail": {"code": "missing_required_field", "param": "name"}}',
            failures.ProtocolBroken,
        ),
        (
            400,
            b'{"detail": {"code": "invalid_parameters", "message": "x", "param": "files"}}',
            failures.SampleRejected,
        ),
        (400, b'{"detail": {"code": "invalid_parameters", "param": ["files"]}}', failures.ProtocolBroken),
        (400, b'{"detail": {"code": "bad_request", "status": "invalid_uid"}}', failures.ProtocolBroken),
        (400, b'{"detail": {"status": "something_new"}}', failures.SampleRejected),
        (400, b'{"detail": {"status": 7, "code": null, "message": ["x"]}}', failures.ProtocolBroken),
        (400, b'{"detail": {}}', failures.ProtocolBroken),
        (400, b'{"detail": null}', failures.ProtocolBroken),
        (
            400,
            b'{"\\udc00": 1, "detail": {"\\ud83d": 1, "status": "voice_limit_reached"}}',
            failures.SlotsExhausted,
        ),
        (400, b'{"detail": {"status": "\\ud83d", "message": "\\ud83d"}}', failures.SampleRejected),
        (400, b"null", failures.ProtocolBroken),
        (422, b'{"detail": [7, {"loc": null}]}', failures.ProtocolBroken),
    ],
)
def test_other_bodies(status: int, body: bytes, expected: type[failures.ProviderFailure]) -> None:
    """Survives every shape of body and falls back on the HTTP status."""
    failure = classify(status, {}, body, refused=failures.SampleRejected, gone=GONE)

    assert expected is type(failure)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, b'{"detail": "Invalid conversation config: Value error"}', failures.AgentRejected),
        (400, b'{"detail": {"status": "bad_request", "message": "Invalid"}}', failures.AgentRejected),
        (400, b'{"detail": {"code": "invalid_voice_id"}}', failures.AgentRejected),
        (422, b'{"detail": {"message": "Invalid"}}', failures.AgentRejected),
        (422, b'{"detail": [{"loc": ["body"], "msg": "x", "type": "y"}]}', failures.AgentRejected),
        (413, b'{"detail": {"code": "request_too_large"}}', failures.AgentRejected),
        (400, b'{"detail": {"status": "invalid_content"}}', failures.AgentRejected),
        (422, b'{"detail": [7, {"loc": null}]}', failures.ProtocolBroken),
        (400, b'{"detail": "There was an error parsing the body"}', failures.ProtocolBroken),
        (400, b'{"detail": null}', failures.ProtocolBroken),
        (400, b"<html>400 Bad Request</html>", failures.ProtocolBroken),
        (413, b"<html>413 Request Entity Too Large</html>", failures.ProtocolBroken),
        (422, b"", failures.ProtocolBroken),
        (418, b'{"detail": "Invalid"}', failures.ProtocolBroken),
    ],
)
def test_refused_agents(status: int, body: bytes, expected: type[failures.ProviderFailure]) -> None:
    """An agent is refused where ElevenLabs says so itself, and not where a proxy could have."""
    failure = classify(status, {}, body, refused=failures.AgentRejected, gone=GONE)

    assert expected is type(failure)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, failures.ProtocolBroken), (401, failures.Unauthorized), (500, failures.Unavailable)],
)
def test_refused_without_a_sample(status: int, expected: type[failures.ProviderFailure]) -> None:
    """Where no sample was sent, a word for one says nothing, and the status counts."""
    body = b'{"detail": {"code": "request_too_large", "status": "invalid_content"}}'

    failure = classify(status, {}, body, refused=failures.ProtocolBroken, gone=GONE)

    assert expected is type(failure)


DATE = "Wed, 21 Oct 2026 07:28:00 GMT"


@pytest.mark.parametrize(
    ("header", "date", "expected"),
    [
        ("3", "", 3.0), ("0", "", 0.0), ("030", "", 30.0), ("99999", "", 3_600.0), ("604800", "", 3_600.0),
        ("9" * 8_000, "", 3_600.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", DATE, 30.0),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", DATE, 30.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", DATE, 0.0),
        ("Thu, 22 Oct 2026 07:28:00 GMT", DATE, 3_600.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", "", None), ("Wed, 21 Oct 2026 07:28:30 GMT", "today", None),
        ("Wed, 21 Oct 2026 07:28:30 -0000", DATE, None),
        ("Wed, 99 Oct 2026 07:28:30 GMT", DATE, None),
        ("Wed, 21 Oct 2026 07:28:30 +9999999999999999999", DATE, None),
        ("", "", None), ("", DATE, None), ("-1", DATE, None), ("1.5", DATE, None), ("3, 4", DATE, None),
        ("²", DATE, None), ("x" * 8_000, DATE, None),
    ],
    ids=lambda text: str(text)[:40],
)  # fmt: skip
def test_retry_after(header: str, date: str, expected: float | None) -> None:
    """Takes seconds and dates, an hour at most; a date counts from that of the answer."""
    headers = {"retry-after": header, "date": date}

    failure = classify(429, headers, b"", refused=failures.SampleRejected, gone=GONE)

    assert expected == failure.retry_after


@given(text=st.text(st.sampled_from('Wed, 21 Oct 2026 07:28:00 GMT+-:;/\t"()\\é'), max_size=60))
def test_retry_after_of_any_text(text: str) -> None:
    """Whatever it is, the failure is the one that it is without it."""
    failure = classify(
        429, {"retry-after": text, "date": DATE}, b"", refused=failures.SampleRejected, gone=GONE
    )

    assert failures.Busy is type(failure)


@pytest.mark.parametrize(
    ("status", "word", "maybe_done"),
    [
        (101, "", True),
        (304, "", True),
        (307, "", True),
        (400, "", False),
        (403, "", False),
        (403, "maintenance", True),
        (408, "", True),
        (409, "already_processing", True),
        (409, "voice_already_exists", True),
        (429, "", False),
        (429, "system_busy", False),
        (500, "", True),
        (504, "", True),
    ],
)
def test_maybe_done(status: int, word: str, maybe_done: bool) -> None:
    """Work that may be asked for again may have been done, unless a 429 refused it."""
    body = json.dumps({"detail": {"code": word}}).encode()

    failure = classify(status, {}, body, refused=failures.SampleRejected, gone=GONE)

    assert maybe_done is failure.maybe_done
