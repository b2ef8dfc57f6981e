"""Our values as messages of the contract."""

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from precall.v1 import cloning_pb2 as pb
from precall.v1 import error_reason_pb2
from precall.v1.error_reason_pb2 import ErrorReason

from cloner.call import Begun
from cloner.provider.elevenlabs import AgentVoice
from cloner.registry import CallView, Consent, reasons
from cloner.voices.voice import Voice

__all__ = ["STATES", "call", "consent", "duration", "fallback", "moment", "speech", "voice"]

LONGEST_TRAILING_GREETING = 4_000
REASON_NAMES = frozenset(ErrorReason.keys())
# How each state in the registry is called in the contract.
STATES = {
    "intended": pb.VOICE_STATE_CREATING,
    "ready": pb.VOICE_STATE_READY,
    "failed": pb.VOICE_STATE_FAILED,
    "deleting": pb.VOICE_STATE_GONE,
    "gone": pb.VOICE_STATE_GONE,
}
CAUSES = {
    reasons.EXPIRED: pb.GONE_CAUSE_EXPIRED,
    reasons.EVICTED: pb.GONE_CAUSE_EVICTED,
    reasons.REPLACED: pb.GONE_CAUSE_REPLACED,
    reasons.RESTORED: pb.GONE_CAUSE_RESTORED,
    reasons.LOST: pb.GONE_CAUSE_LOST,
    reasons.DELETED: pb.GONE_CAUSE_DELETED,
    reasons.FORGOTTEN: pb.GONE_CAUSE_FORGOTTEN,
    reasons.CONSENT_WITHDRAWN: pb.GONE_CAUSE_CONSENT_WITHDRAWN,
}
# What the registry notes of failures that are not ElevenLabs' own.
REASONS = {
    reasons.UNANSWERED: error_reason_pb2.ERROR_REASON_PROVIDER_TIMEOUT,
    reasons.CONSENT_WITHDRAWN: error_reason_pb2.ERROR_REASON_CONSENT_MISSING,
}


def voice(known: Voice) -> pb.Voice:
    """A voice."""
    state = STATES[known.state]
    return pb.Voice(
        voice_id=known.voice_id,
        name=known.name,
        create_time=moment(known.created),
        consent=known.consent,
        consent_time=None if known.consented is None else moment(known.consented),
        state=state,
        expire_time=None if known.expires is None else moment(known.expires),
        last_use_time=None if known.used is None else moment(known.used),
        failure_reason=_reason(known.reason, state),
        gone_cause=_cause(known.reason, state),
        client_reference=known.reference,
    )


def call(known: CallView, ended_at: float | None) -> pb.Call:
    """A call, and when it ended."""
    return pb.Call(
        call_id=known.id,
        agent_id=known.agent_id,
        conversation_id=known.conversation_id,
        voice_id=known.voice_id or "",
        agent_updated=known.agent_updated,
        begin_time=moment(known.begun_at),
        end_time=None if ended_at is None else moment(ended_at),
    )


def consent(known: Consent) -> pb.Consent:
    """A consent, or its withdrawal."""
    return pb.Consent(reference=known.reference, time=moment(known.at), withdrawn=known.withdrawn)


def fallback(begun: Begun, refused_leaves: frozenset[str] | None) -> pb.FallbackInfo:
    """What is sent with a failure, in the metadata of the call, whose size is limited."""
    before = speech(begun.agent_before)
    if before is not None and len(before.first_message.encode()) > LONGEST_TRAILING_GREETING:
        before.first_message = ""
    return pb.FallbackInfo(
        agent_before=before,
        refused_leaves=sorted(refused_leaves or ()),
        settings_seen=refused_leaves is not None,
        call_id=begun.call_id,
    )


def speech(spoken: AgentVoice | None) -> pb.Speech | None:
    """How an agent speaks, where that is known."""
    if spoken is None:
        return None
    return pb.Speech(voice_id=spoken.voice_id or "", first_message=spoken.first_message or "")


def moment(at: float) -> Timestamp:
    """A time in Unix seconds."""
    stamp = Timestamp()
    stamp.FromDatetime(datetime.fromtimestamp(at, UTC))
    return stamp


def duration(seconds: float) -> Duration:
    """A length of time."""
    length = Duration()
    length.FromMilliseconds(round(1000 * seconds))
    return length


def _cause(noted: str | None, state: pb.VoiceState.ValueType) -> pb.GoneCause.ValueType:
    if state != pb.VOICE_STATE_GONE:
        return pb.GONE_CAUSE_UNSPECIFIED
    return CAUSES.get(noted or "", pb.GONE_CAUSE_LOST)


def _reason(noted: str | None, state: pb.VoiceState.ValueType) -> ErrorReason.ValueType:
    if state != pb.VOICE_STATE_FAILED:
        return error_reason_pb2.ERROR_REASON_UNSPECIFIED
    name = f"ERROR_REASON_{noted}"
    if noted in REASONS:
        return REASONS[noted]
    return ErrorReason.Value(name) if name in REASON_NAMES else error_reason_pb2.ERROR_REASON_INTERNAL
