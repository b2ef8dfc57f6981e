"""Every error body the provider is known to send, by name.

The names are the provider's own `code` or `status` values, so that a test says which failure it means in the
provider's words. Three shapes are in use at the provider, and all three are here:

- the current object, `{"detail": {"type", "code", "message", "status", "request_id"}}`
- the older object, `{"detail": {"status", "message"}}`
- FastAPI's list, `{"detail": [{"type", "loc", "msg", "input"}]}`

and so is what a proxy in front of it may say: HTML, plain text, nothing. Where an error has been seen on the
wire, it is here as it was seen; where only its code is documented, it has the current shape and a sentence
made of the code.
"""

import re
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from emulator.answer import Answer

ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class WireError:
    """One error as it looks on the wire, but for the request's own trace id."""

    status: int
    body: Any
    """JSON; a `str` goes out as it stands."""
    content_type: str = "application/json"

    def saying(self, message: str) -> "WireError":
        """The same error with a message of its own."""
        return replace(self, body={"detail": {**self.body["detail"], "message": message}})

    def answer(self, trace_id: str) -> Answer:
        """The answer to the request of that trace id, which the current object repeats as `request_id`."""
        headers = {"content-type": self.content_type}
        if isinstance(self.body, str):
            return Answer(status=self.status, headers=headers, body=self.body.encode())
        detail = self.body["detail"]
        if isinstance(detail, dict) and "type" in detail:
            detail = {**detail, "request_id": trace_id}
        return Answer(status=self.status, headers=headers, body=msgspec.json.encode({"detail": detail}))


class Refused(Exception):
    """The provider says no; nothing was created or changed."""

    def __init__(self, error: WireError) -> None:
        super().__init__(error.status)
        self.error = error


def refused(name: str, message: str | None = None) -> Refused:
    """The refusal of that name, with a message of its own if one is given."""
    error = ERRORS[name]
    return Refused(error if message is None else error.saying(message))


def not_found(name: str, resource_id: str, message: str | None = None) -> Refused:
    """The refusal of that name for an id that nothing has, or of an id that nothing can have."""
    return refused(name, message) if ID.fullmatch(resource_id) else refused("invalid_uid")


def unprocessable(*entries: dict[str, Any]) -> Refused:
    """FastAPI's 422: one entry for each thing wrong with the request."""
    return Refused(WireError(status=422, body={"detail": list(entries)}))


def entry(kind: str, loc: list[str | int], msg: str) -> dict[str, Any]:
    """One entry of FastAPI's 422."""
    return {"type": kind, "loc": loc, "msg": msg, "input": None}


def _current(http_status: int, kind: str, code: str, message: str, **more: str) -> WireError:
    # `status` repeats the code, unless it is among `more` because it says more than the code.
    detail = {"type": kind, "code": code, "message": message, "status": code, **more}
    return WireError(status=http_status, body={"detail": detail})


def _older(http_status: int, status: str, message: str) -> WireError:
    return WireError(status=http_status, body={"detail": {"status": status, "message": message}})


VOICE_LIMIT = (
    "You have reached your maximum amount of custom voices ({0} / {0}). "
    "You can upgrade your subscription to increase your custom voice limit."
)
MONTHLY_LIMIT = (
    "You have reached the maximum number of voice add/edit operations of this billing period ({0} / {0})."
)

CODES: dict[tuple[int, str], str] = {
    (400, "validation_error"): """
        invalid_parameters missing_required_field invalid_voice_settings invalid_voice_id invalid_audio
        invalid_audio_format audio_too_long audio_too_short invalid_file_type""",
    (400, "invalid_request"): "bad_request malformed_json request_too_large",
    (401, "authentication_error"): "unauthorized",
    (402, "payment_required"): "insufficient_credits paid_plan_required",
    (403, "authorization_error"): """
        insufficient_permissions feature_not_available subscription_required voice_access_denied
        workspace_access_denied""",
    (404, "not_found"): "conversation_not_found",
    (409, "conflict"): "concurrent_modification voice_already_exists already_processing",
    (429, "rate_limit_error"): "rate_limit_exceeded system_busy",
    (500, "internal_error"): "internal_error",
    (503, "service_unavailable"): "service_unavailable maintenance",
}
"""Codes the documentation lists without a body, by HTTP status and type."""

DOCUMENTED = {
    code: _current(status, kind, code, f"{code.replace('_', ' ').capitalize()}.")
    for (status, kind), codes in CODES.items()
    for code in codes.split()
}

SEEN = {
    "missing_api_key": _current(
        401,
        "authentication_error",
        "missing_api_key",
        "Neither authorization header nor xi-api-key received, please provide one.",
    ),
    "invalid_api_key": _older(401, "invalid_api_key", "Invalid API key"),
    "missing_permissions": _current(
        401,
        "authentication_error",
        "unauthorized",
        "The API key you used is missing the permission create_instant_voice_clone "
        "to execute this operation.",
        status="missing_permissions",
    ),
    "quota_exceeded": _older(
        401,
        "quota_exceeded",
        "This request exceeds your quota of 10000. You have 0 credits remaining, "
        "while 40 credits are required for this request.",
    ),
    "can_not_use_instant_voice_cloning": _current(
        400,
        "payment_required",
        "paid_plan_required",
        "Your subscription does not include instant voice cloning. Please upgrade your plan.",
        status="can_not_use_instant_voice_cloning",
    ),
    "voice_limit_reached": _older(400, "voice_limit_reached", VOICE_LIMIT.format(10)),
    # Since September 2026 only the message tells this one from any other bad request.
    "voice_limit_reached_2026": _current(400, "invalid_request", "bad_request", VOICE_LIMIT.format(10)),
    "voice_add_edit_limit_reached": _older(403, "voice_add_edit_limit_reached", MONTHLY_LIMIT.format(95)),
    "voice_add_edit_limit_reached_400": _older(400, "voice_add_edit_limit_reached", MONTHLY_LIMIT.format(95)),
    "invalid_content": _older(
        400, "invalid_content", "File upload is corrupted. Please ensure it is playable audio."
    ),
    "duplicate_files": _older(400, "duplicate_files", "You cannot upload the same file twice."),
    "invalid_uid": _current(400, "invalid_request", "bad_request", "Invalid ID.", status="invalid_uid"),
    "invalid_conversation_config": _current(
        400,
        "invalid_request",
        "bad_request",
        "Invalid conversation config: Value error, English Agents must use turbo or flash v2.",
    ),
    "agent_not_found": _older(404, "agent_not_found", "Agent not found"),
    "voice_not_found": _current(
        404, "not_found", "voice_not_found", "A voice with the requested voice_id was not found."
    ),
    "voice_not_found_400": _older(
        400, "voice_not_found", "A voice with the requested voice_id was not found."
    ),
    "concurrent_limit_exceeded": _current(
        429,
        "rate_limit_error",
        "concurrent_limit_exceeded",
        "Too many concurrent requests. Your current subscription is associated with a maximum of "
        "4 concurrent requests (running in parallel).",
        status="too_many_concurrent_requests",
        docs_url="https://elevenlabs.io/docs/eleven-api/resources/errors",
    ),
}
"""Bodies that were seen on the wire, and those of our own that must look like them."""

SHAPES = {
    "string_detail": WireError(status=500, body={"detail": "Internal Server Error"}),
    "unparsable_form": WireError(status=400, body={"detail": "There was an error parsing the body"}),
    "validation_list": WireError(
        status=422, body={"detail": [entry("missing", ["body", "name"], "Field required")]}
    ),
    "html": WireError(
        status=502,
        body="<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n"
        "<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n</body>\r\n</html>\r\n",
        content_type="text/html",
    ),
    "plain_text": WireError(status=500, body="Internal Server Error", content_type="text/plain"),
    "empty": WireError(status=503, body="", content_type="text/plain"),
}
"""Answers that are only a shape; most of them come from something in front of the provider."""

ERRORS: dict[str, WireError] = DOCUMENTED | SEEN | SHAPES
