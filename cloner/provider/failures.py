"""What can go wrong at ElevenLabs, and how its error answers tell.

    ProviderFailure         at fault            tried again
    ├── Unauthorized        operator: the key   no
    ├── PlanLimit           operator: the plan  no
    ├── SlotsExhausted      operator: the plan  no
    ├── MonthlyLimit        operator: the plan  no
    ├── SampleRejected      the sample          no
    ├── AgentNotFound       the request         no
    ├── AgentRejected       the agent           no
    ├── VoiceNotFound       the request         no
    ├── ProtocolBroken      ElevenLabs          no
    ├── Busy                ElevenLabs          yes
    │   └── OwnQueueFull    our own bounds      yes: nobody was asked
    ├── Unavailable         ElevenLabs          yes
    └── TimedOut            ElevenLabs          reads, agent updates and deletions
        └── DeadlineTooShort  whoever set it    no: nobody was asked

`maybe_done` says whether what was asked for may have been done all the same. The text of a failure
is our own fixed sentence, never ElevenLabs' words, which can repeat what was sent.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import ClassVar, NamedTuple

import msgspec

from cloner.provider import loose_json

__all__ = [
    "FAIR_SECONDS",
    "AgentNotFound",
    "AgentRejected",
    "Busy",
    "DeadlineTooShort",
    "MonthlyLimit",
    "OwnQueueFull",
    "PlanLimit",
    "ProtocolBroken",
    "ProviderFailure",
    "SampleRejected",
    "SlotsExhausted",
    "TimedOut",
    "Unauthorized",
    "Unavailable",
    "VoiceNotFound",
    "classify",
    "word_of",
]


# No answer takes longer when all is well. If a caller gave less time, it gave too little.
FAIR_SECONDS = 1.0


class ProviderFailure(Exception):
    """A request to ElevenLabs failed."""

    reason: ClassVar[str]
    """The name of its ErrorReason in the proto, without the prefix."""

    sentence: ClassVar[str]

    def __init__(self, *, maybe_done: bool = False, retry_after: float | None = None) -> None:
        super().__init__(self.sentence)
        self.maybe_done = maybe_done
        self.retry_after = retry_after
        self.unanswered = maybe_done
        """Whether a try got no answer of ElevenLabs' own, so that it may be done only after this."""

        self.code: str | None = None
        """ElevenLabs' own word for it, where it gave one."""

        self.status: int | None = None
        """The HTTP status, where there was an answer."""


class Unauthorized(ProviderFailure):
    """The API key is not valid, or lacks a permission."""

    reason = "PROVIDER_UNAUTHORIZED"
    sentence = "ElevenLabs refused the API key, or the key lacks a permission."

    permission: str | None = None
    """The permission that a valid key lacks, as ElevenLabs calls it; "" if it does not say which."""


class PlanLimit(ProviderFailure):
    """The plan does not include this, or its credits are used up."""

    reason = "PROVIDER_PLAN_LIMIT"
    sentence = "The ElevenLabs plan does not include voice cloning, or its credits are used up."


class SlotsExhausted(ProviderFailure):
    """Every voice slot of the plan is taken."""

    reason = "VOICE_SLOTS_EXHAUSTED"
    sentence = "Every voice slot of the ElevenLabs plan is taken."


class MonthlyLimit(ProviderFailure):
    """The plan's voice additions and edits of this month are used up."""

    reason = "VOICE_MONTHLY_LIMIT"
    sentence = "The monthly voice additions of the ElevenLabs plan are used up."


class SampleRejected(ProviderFailure):
    """ElevenLabs does not clone from this sample."""

    reason = "SAMPLE_REJECTED"
    sentence = "ElevenLabs refused the voice sample; send a clear recording of one speaker."


class AgentNotFound(ProviderFailure):
    """There is no such agent in the workspace of the API key."""

    reason = "AGENT_NOT_FOUND"
    sentence = "ElevenLabs knows no agent with this agent_id."


class AgentRejected(ProviderFailure):
    """ElevenLabs refused the voice or the greeting for this agent."""

    reason = "AGENT_REJECTED"
    sentence = "ElevenLabs refused the change to the agent."


class VoiceNotFound(ProviderFailure):
    """There is no such voice in the workspace of the API key."""

    reason = "NOT_FOUND"
    sentence = "There is no such voice."


class ProtocolBroken(ProviderFailure):
    """The answer cannot be read, or is one that the API does not give to a correct request."""

    reason = "PROVIDER_PROTOCOL"
    sentence = "ElevenLabs answered something that cannot be read."


class Busy(ProviderFailure):
    """ElevenLabs handles as much as it may, or our own connections to it are all in use."""

    reason = "PROVIDER_BUSY"
    sentence = "ElevenLabs is too busy; try again later."


class OwnQueueFull(Busy):
    """Our own queue to ElevenLabs is full, or there was no turn in it in time: nobody was asked."""

    sentence = "Too many requests to ElevenLabs are waiting here; try again later."


class Unavailable(ProviderFailure):
    """ElevenLabs cannot be reached, broke the connection, or failed."""

    reason = "PROVIDER_UNAVAILABLE"
    sentence = "ElevenLabs is not available; try again later."


class TimedOut(ProviderFailure):
    """ElevenLabs was asked and did not answer in time."""

    reason = "PROVIDER_TIMEOUT"
    sentence = "ElevenLabs did not answer in time; what was begun is finished, so try again."


class DeadlineTooShort(TimedOut):
    """The caller's deadline passed before ElevenLabs was asked, or before the registry had answered."""

    reason = "DEADLINE_TOO_SHORT"
    sentence = "The deadline was too short for an answer; send a longer one."


# The words of `detail.status` and `detail.code` (API reference, "Errors"), status first, as the
# legacy field is often the more specific one. Words decide before the HTTP status does: a 400 can
# be a full plan, a 401 can be used-up credits, a 403 can be the monthly counter.
WORDS: Mapping[str, type[ProviderFailure]] = {
    "voice_limit_reached": SlotsExhausted,
    "voice_add_edit_limit_reached": MonthlyLimit,
    "can_not_use_instant_voice_cloning": PlanLimit,
    "feature_not_available": PlanLimit,
    "insufficient_credits": PlanLimit,
    "paid_plan_required": PlanLimit,
    "payment_required": PlanLimit,
    "quota_exceeded": PlanLimit,
    "subscription_required": PlanLimit,
    "insufficient_permissions": Unauthorized,
    "invalid_api_key": Unauthorized,
    "missing_api_key": Unauthorized,
    "missing_permissions": Unauthorized,
    "unauthorized": Unauthorized,
    "workspace_access_denied": Unauthorized,
    "audio_too_long": SampleRejected,
    "audio_too_short": SampleRejected,
    "duplicate_files": SampleRejected,
    "invalid_audio": SampleRejected,
    "invalid_audio_format": SampleRejected,
    "invalid_content": SampleRejected,
    "invalid_file_type": SampleRejected,
    "request_too_large": SampleRejected,
    "already_processing": Busy,
    "concurrent_limit_exceeded": Busy,
    "concurrent_modification": Busy,
    "rate_limit_exceeded": Busy,
    "system_busy": Busy,
    "too_many_concurrent_requests": Busy,
    "maintenance": Unavailable,
    "service_unavailable": Unavailable,
}
# A loss cannot be undone once it is acted upon. Something is gone only where ElevenLabs says so in `status`
# or `code` of an answer that the API gives to it: a bare 404 can come from a proxy.
GONE_WORDS = ("agent_not_found", "voice_not_found")
GONE_STATUSES = (400, 404)
# Seen in September 2026 under the generic code "bad_request", with no word of its own.
SLOTS_MESSAGE = "maximum amount of custom voices"

# What is wrong with the form of a create. It says nothing of the sample, unless `param` names the files.
FORM_WORDS = {
    "invalid_parameters",
    "invalid_uid",
    "invalid_voice_id",
    "invalid_voice_settings",
    "malformed_json",
    "missing_required_field",
}
UNREADABLE_FORM = "There was an error parsing the body"

WORD = re.compile(r"[a-z]+(?:_[a-z]+){0,7}")

PERMISSION_WORDS = {"insufficient_permissions", "missing_permissions"}
# "The API key you used is missing the permission voices_read to execute this operation."
PERMISSION = re.compile(r"\bpermission ([a-z]+(?:_[a-z]+){1,5})\b")

# With these statuses a proxy between us and ElevenLabs says that it has stopped waiting.
UNANSWERED_STATUSES = (408, 502, 504)

LONGEST_RETRY_AFTER_SECONDS = 3600.0

STATUSES: Mapping[int, type[ProviderFailure]] = {
    401: Unauthorized,
    402: PlanLimit,
    403: Unauthorized,
    408: Unavailable,
    409: Busy,
    429: Busy,
}


class _Texts(NamedTuple):
    """The texts of an error answer's `detail`, which may be a message alone; empty where it has none."""

    status: str = ""
    code: str = ""
    type: str = ""
    message: str = ""
    param: str = ""


class _Body(msgspec.Struct):
    detail: object = None


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    refused: type[ProviderFailure],
    gone: Mapping[str, type[ProviderFailure]],
) -> ProviderFailure:
    """Turns an answer that is not a success into a failure.

    `refused` is the failure for a 400, 413 or 422 in which ElevenLabs itself refuses the sample or the agent
    without a known word, and `gone` the one for its words for something that does not exist. Any body is
    accepted. What no rule knows, such as a 404 or a 400 that a proxy could have sent, is ProtocolBroken.
    """
    detail = _detail(body)
    texts = _texts(detail)
    about_sample = refused is SampleRejected
    kind = _kind_by_words(status, texts, gone)
    if kind is None or (kind is SampleRejected and not about_sample):
        kind = STATUSES.get(status)
        if status == 403 and not any(texts):
            kind = ProtocolBroken  # a proxy between us says so, too, and nobody need set another key
    if kind is None and status >= 500:
        kind = Unavailable
    elif kind is None:
        kind = refused if _is_refusal(status, detail, texts, about_sample=about_sample) else ProtocolBroken
    # A refusal comes before the work, and a 429 is one. After a server's own error the work may have been
    # done. So it may after another answer that says to come later: the time-out of a proxy (408), or a
    # conflict (409) with the very work that was asked for. A redirection says nothing of it.
    unsure = status < 400 or status >= 500 or (issubclass(kind, (Busy, Unavailable)) and status != 429)
    failure = kind(maybe_done=unsure, retry_after=_retry_after(headers))
    failure.code, failure.status = _word(texts), status
    failure.unanswered = unsure and status in UNANSWERED_STATUSES
    if isinstance(failure, Unauthorized):
        failure.permission = _permission(texts)
    return failure


def word_of(body: bytes) -> str | None:
    """ElevenLabs' own word for a failure. Any other text may repeat what was sent, and is left out."""
    return _word(_texts(_detail(body)))


def _word(texts: _Texts) -> str | None:
    return next((word for word in (texts.status, texts.code, texts.type) if WORD.fullmatch(word)), None)


def _kind_by_words(
    status: int, texts: _Texts, gone: Mapping[str, type[ProviderFailure]]
) -> type[ProviderFailure] | None:
    for word in (texts.status, texts.code):
        if word in GONE_WORDS:
            return gone.get(word) if status in GONE_STATUSES else None
    for word in (texts.status, texts.code, texts.type):
        if word in WORDS:
            return WORDS[word]
    return SlotsExhausted if SLOTS_MESSAGE in texts.message else None


def _permission(texts: _Texts) -> str | None:
    """Which permission is missing; None where the key itself is refused."""
    if PERMISSION_WORDS.isdisjoint((texts.status, texts.code)):
        return None
    found = PERMISSION.search(texts.message)
    return found[1] if found else ""


def _is_refusal(status: int, detail: object, texts: _Texts, *, about_sample: bool) -> bool:
    """Whether ElevenLabs itself refuses what was sent, and not the form in which it was sent."""
    if status not in (400, 413, 422):
        return False
    if about_sample and status == 413:
        return True  # whoever says so: the sample is the only large part of a request
    if isinstance(detail, list):
        places = [fault.get("loc") for fault in detail if isinstance(fault, dict)]
        return any(isinstance(place, list) and (not about_sample or "files" in place) for place in places)
    if texts.message == UNREADABLE_FORM:
        return False
    if about_sample and not FORM_WORDS.isdisjoint(texts):
        return texts.param.startswith("files")
    return any(texts)


def _texts(detail: object) -> _Texts:
    members = detail if isinstance(detail, dict) else {"message": detail}
    return _Texts(*(text if isinstance(text := members.get(name), str) else "" for name in _Texts._fields))


def _detail(body: bytes) -> object:
    try:
        return loose_json.decode(body, _Body).detail
    except loose_json.JsonUnreadable:
        return None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that `Retry-After` asks for, an hour at most; ElevenLabs' own clock counts for a date."""
    text = headers.get("retry-after", "")
    try:
        if text.isascii() and text.isdigit():
            seconds = float(text)
        else:
            wait = parsedate_to_datetime(text) - parsedate_to_datetime(headers.get("date", ""))
            seconds = max(0.0, wait.total_seconds())
    except (ValueError, TypeError, OverflowError, IndexError):  # what the parser raises for no date
        return None
    return min(seconds, LONGEST_RETRY_AFTER_SECONDS)
