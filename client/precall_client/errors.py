"""One exception class for each ErrorReason of the proto, named after it.

Those that only HTTP gives are here too, since both read one list.
"""

from precall_client.failure import PrecallError, SampleInvalid, Temporary, Violation, error_of

__all__ = [
    "AgentNotFound",
    "AgentRejected",
    "BodyTimeout",
    "BodyTooLarge",
    "ClonerUnavailable",
    "ConsentMissing",
    "ConversationMismatch",
    "DeadlineTooShort",
    "FieldInvalid",
    "Internal",
    "MalformedBody",
    "MethodNotAllowed",
    "NotFound",
    "PermissionDenied",
    "PrecallError",
    "ProviderBusy",
    "ProviderPlanLimit",
    "ProviderProtocol",
    "ProviderTimeout",
    "ProviderUnauthorized",
    "ProviderUnavailable",
    "RateLimited",
    "RegistryUnavailable",
    "SampleInvalid",
    "SampleRateTooLow",
    "SampleRejected",
    "SampleRequired",
    "SampleSilent",
    "SampleTooLarge",
    "SampleTooLong",
    "SampleTooShort",
    "SampleUnreadable",
    "SignatureExpired",
    "SignatureMalformed",
    "SignatureMismatch",
    "SignatureMissing",
    "Temporary",
    "Unauthenticated",
    "UnsupportedMediaType",
    "Violation",
    "VoiceMonthlyLimit",
    "VoiceNeedsVerification",
    "VoiceNotActivated",
    "VoiceSlotsExhausted",
    "error_of",
]


class MalformedBody(PrecallError):
    """The body is not JSON, not a multipart form, or not an object of the expected form."""

    REASON = "MALFORMED_BODY"


class FieldInvalid(PrecallError):
    """A field is missing, empty, of the wrong type or out of range.

    The message names it.
    """

    REASON = "FIELD_INVALID"


class SignatureMissing(PrecallError):
    """The delivery carries no ElevenLabs-Signature header."""

    REASON = "SIGNATURE_MISSING"


class SignatureMalformed(PrecallError):
    """The ElevenLabs-Signature header is not of the form `t=<unix seconds>,v0=<hex>`."""

    REASON = "SIGNATURE_MALFORMED"


class SignatureMismatch(PrecallError):
    """No signature in the header fits the body under any configured secret."""

    REASON = "SIGNATURE_MISMATCH"


class SignatureExpired(PrecallError):
    """The signature is older than 30 minutes, or more than 5 minutes ahead of our clock."""

    REASON = "SIGNATURE_EXPIRED"


class Unauthenticated(PrecallError):
    """The request carries no valid credential."""

    REASON = "UNAUTHENTICATED"


class PermissionDenied(PrecallError):
    """The credential is valid but does not allow this."""

    REASON = "PERMISSION_DENIED"


class NotFound(PrecallError):
    """There is no such path, or no such voice or call of ours."""

    REASON = "NOT_FOUND"


class MethodNotAllowed(PrecallError):
    """The path or service exists but does not offer this method."""

    REASON = "METHOD_NOT_ALLOWED"


class ConversationMismatch(PrecallError):
    """This agent and conversation were asked about before, for another caller.

    A conversation has one.
    """

    REASON = "CONVERSATION_MISMATCH"


class BodyTimeout(Temporary):
    """The body did not arrive in time."""

    REASON = "BODY_TIMEOUT"


class BodyTooLarge(PrecallError):
    """The body is larger than any request with an allowed sample, or a gRPC call's metadata is too large."""

    REASON = "BODY_TOO_LARGE"


class SampleTooLarge(SampleInvalid):
    """The sample is larger than the limit, by default 10 MiB."""

    REASON = "SAMPLE_TOO_LARGE"


class UnsupportedMediaType(PrecallError):
    """The Content-Type is neither application/json nor multipart/form-data."""

    REASON = "UNSUPPORTED_MEDIA_TYPE"


class SampleRequired(SampleInvalid):
    """No sample came, and no voice of the caller is known."""

    REASON = "SAMPLE_REQUIRED"


class SampleTooShort(SampleInvalid):
    """The sample holds less audio than needed, by default 3 seconds."""

    REASON = "SAMPLE_TOO_SHORT"


class SampleTooLong(SampleInvalid):
    """The sample holds more audio than allowed, by default 600 seconds."""

    REASON = "SAMPLE_TOO_LONG"


class SampleSilent(SampleInvalid):
    """Too little of the sample is louder than -50 dBFS, by default less than a second."""

    REASON = "SAMPLE_SILENT"


class SampleRateTooLow(SampleInvalid):
    """The sample has fewer samples a second than needed, by default 16,000."""

    REASON = "SAMPLE_RATE_TOO_LOW"


class SampleUnreadable(SampleInvalid):
    """The sample is not audio that can be decoded."""

    REASON = "SAMPLE_UNREADABLE"


class SampleRejected(SampleInvalid):
    """ElevenLabs refused the sample."""

    REASON = "SAMPLE_REJECTED"


class VoiceNeedsVerification(PrecallError):
    """ElevenLabs wants the voice verified before it may speak; it was removed again."""

    REASON = "VOICE_NEEDS_VERIFICATION"


class ConsentMissing(PrecallError):
    """The caller's consent to the clone is missing.

    The server is set to require one; or it was withdrawn, and no new one was given; or the caller was
    forgotten while the request was under way.
    """

    REASON = "CONSENT_MISSING"


class AgentNotFound(PrecallError):
    """ElevenLabs knows no agent of this id."""

    REASON = "AGENT_NOT_FOUND"


class AgentRejected(PrecallError):
    """ElevenLabs refused the change to the agent.

    The voice stays and is found next time.
    """

    REASON = "AGENT_REJECTED"


class RateLimited(Temporary):
    """This system handles as much as it may at once, or too much came for one agent or from one address.

    Try again after `Retry-After`.
    """

    REASON = "RATE_LIMITED"


class ProviderUnauthorized(PrecallError):
    """ElevenLabs refused the API key, or the key lacks a permission.

    An operator must act.
    """

    REASON = "PROVIDER_UNAUTHORIZED"


class ProviderPlanLimit(PrecallError):
    """The ElevenLabs plan does not include cloning, or its credits are used up."""

    REASON = "PROVIDER_PLAN_LIMIT"


class VoiceSlotsExhausted(PrecallError):
    """Every voice slot of the ElevenLabs plan is taken."""

    REASON = "VOICE_SLOTS_EXHAUSTED"


class VoiceMonthlyLimit(PrecallError):
    """The voice additions and edits that the ElevenLabs plan allows each month are used up."""

    REASON = "VOICE_MONTHLY_LIMIT"


class ProviderProtocol(PrecallError):
    """ElevenLabs answered something that cannot be read."""

    REASON = "PROVIDER_PROTOCOL"


class ProviderBusy(Temporary):
    """ElevenLabs is too busy, or too many requests to it are waiting.

    Try again later.
    """

    REASON = "PROVIDER_BUSY"


class ProviderUnavailable(Temporary):
    """ElevenLabs cannot be reached or failed.

    Try again later.
    """

    REASON = "PROVIDER_UNAVAILABLE"


class ClonerUnavailable(Temporary):
    """The cloner cannot be reached, or is stopping.

    Try again: another process may take the call.
    """

    REASON = "CLONER_UNAVAILABLE"


class RegistryUnavailable(Temporary):
    """The store of voices cannot be reached.

    Try again later.
    """

    REASON = "REGISTRY_UNAVAILABLE"


class ProviderTimeout(Temporary):
    """ElevenLabs was asked and did not answer in time.

    What was begun is finished; the next request finds it.
    """

    REASON = "PROVIDER_TIMEOUT"


class Internal(PrecallError):
    """A bug in this system.

    The trace shows where.
    """

    REASON = "INTERNAL"


class VoiceNotActivated(PrecallError):
    """The voice exists, but neither the agent nor an override may carry it.

    A reason to fall back, never a failure.
    """

    REASON = "VOICE_NOT_ACTIVATED"


class DeadlineTooShort(Temporary):
    """The caller's deadline passed before ElevenLabs was asked.

    If it was less than a second, it may also have passed before the registry had answered. What the registry
    was asked to store may have been stored all the same. Send a longer one.
    """

    REASON = "DEADLINE_TOO_SHORT"
