"""What OpenAPI says of deliveries. The routes read raw bytes, so nothing could be derived from them."""

from collections.abc import Collection
from dataclasses import dataclass

from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    RequestBody,
    Schema,
)

from callerid import LONGEST_ADDRESS

__all__ = ["CompleteOperation", "DeliverOperation", "OpenOperation", "responses"]

FAILURES = {
    400: "The body or one of its fields is invalid; nothing was done.",
    401: "The signature is missing, malformed, expired or not ours; nothing was done.",
    408: "The body did not arrive in time.",
    409: "The conversation was asked about for another caller.",
    413: "The body or its sample is too large.",
    415: "The Content-Type is neither application/json nor multipart/form-data.",
    422: "The sample, the voice or the agent was refused.",
    429: "Too much is going on at once; try again after Retry-After.",
    500: "A bug on our side.",
    502: "The provider refuses us, or its limits are reached.",
    503: "The provider or a part of this system cannot be reached; try again.",
    504: "There was no answer in time.",
}


def _text(description: str, **more: object) -> Schema:
    return Schema(type=OpenAPIType.STRING, description=description, **more)  # type: ignore[arg-type]


def _object(required: list[str], **properties: Schema) -> Schema:
    return Schema(type=OpenAPIType.OBJECT, required=required or None, properties=dict(properties))


CALLER = _object(
    [],
    name=_text("The name to greet by.", max_length=200),
    date_of_birth=_text("As the sender writes it; it is not parsed.", max_length=64),
    phone_number=_text(
        "Best in E.164 form; also as a tel:, sip: or whatsapp: address.", max_length=LONGEST_ADDRESS
    ),
    consent=_text("Where the caller's consent to the clone is on record: a reference.", max_length=200),
)
METADATA = {
    "type": _text("The kind of event.", enum=["pre_call"]),
    "event_timestamp": Schema(type=OpenAPIType.INTEGER, description="Unix seconds. Not used."),
    "conversation_id": _text("The conversation that is about to start.", min_length=1, max_length=256),
    "agent_id": _text("The agent that takes the call.", pattern="^[A-Za-z0-9_-]{1,128}$"),
    "caller_metadata": CALLER,
}
SAMPLE = _object(
    ["data"],
    format=_text("How the data is written.", enum=["base64"]),
    data=_text(
        "The recording in standard base64, or a data: URL of it: WAV, MP3, OGG, FLAC, M4A or WebM.",
        content_encoding="base64",
    ),
    duration_seconds=Schema(type=OpenAPIType.NUMBER, description="A hint. What the audio says counts."),
    sample_rate=Schema(type=OpenAPIType.INTEGER, description="A hint. What the audio says counts."),
)
REQUIRED = ["type", "conversation_id", "agent_id"]
BODY = RequestBody(
    required=True,
    description="The signature covers the raw body in both forms. Unknown fields are ignored.",
    content={
        "application/json": OpenAPIMediaType(
            schema=_object([*REQUIRED, "voice_sample"], **METADATA, voice_sample=SAMPLE)
        ),
        "multipart/form-data": OpenAPIMediaType(
            schema=_object(
                ["metadata", "voice_sample"],
                metadata=_object(REQUIRED, **METADATA),
                voice_sample=_text("The recording as a file.", format=OpenAPIFormat.BINARY),
            )
        ),
    },
)
EVENT = _object(
    ["type", "data"],
    type=_text(
        "`post_call_transcription`, `post_call_transcription_otel` and `call_initiation_failure` end the "
        "call. `post_call_audio` and whatever else there is end nothing."
    ),
    event_timestamp=Schema(description="Not used."),
    data=_object(
        [],
        conversation_id=_text("The conversation that is over.", max_length=256),
        agent_id=_text("The agent that took the call."),
        conversation_initiation_client_data=_object(
            [],
            dynamic_variables=_object(
                [], precall_call_id=_text("As our own answer before the call said it.")
            ),
            conversation_config_override=_object(
                [], tts=_object([], voice_id=_text("As our own answer before the call said it."))
            ),
        ),
    ),
)
EVENT_BODY = RequestBody(
    required=True,
    description="The event as ElevenLabs sends it. Unknown fields are ignored. `conversation_id`, "
    "`precall_call_id`, or `agent_id` with `voice_id`: one of them names the call.",
    content={"application/json": OpenAPIMediaType(schema=EVENT)},
)
OPENING = _object(
    [],
    caller_id=_text("The number that calls: the person's, or on an outbound call one of our own."),
    called_number=_text("The number that is called."),
    agent_id=_text("The agent that takes the call."),
    call_sid=_text("What the telephone line calls it. Empty for WhatsApp and SMS."),
    conversation_id=_text("The conversation that is about to start."),
    call_id=_text("As `call_sid`, of a SIP call."),
)
OPENING_BODY = RequestBody(
    required=True,
    description="As ElevenLabs sends it. Nothing is required, and unknown fields are ignored.",
    content={"application/json": OpenAPIMediaType(schema=OPENING)},
)
TOKEN = Parameter(
    name="Authorization",
    param_in="header",
    required=False,
    description="Required unless the body is signed.",
    schema=_text("`Bearer <CONVERSATION_INIT_TOKEN>`"),
)
SIGNATURE = Parameter(
    name="ElevenLabs-Signature",
    param_in="header",
    required=True,
    description="HMAC-SHA256 of `t`, a full stop and the raw body, under the webhook's secret.",
    schema=_text("`t=<unix seconds>,v0=<64 hex digits>`"),
)


@dataclass
class DeliverOperation(Operation):
    """Puts header and bodies of a delivery into the description of its route."""

    def __post_init__(self) -> None:
        self.summary = "Prepare a call"
        self.description = "Clones the caller's voice, or finds it, and gives it to the agent."
        self.request_body = BODY
        self.parameters = [SIGNATURE]


@dataclass
class OpenOperation(Operation):
    """Puts header and body of an initiation webhook into the description of its route."""

    def __post_init__(self) -> None:
        self.summary = "Open a call"
        self.description = (
            "What ElevenLabs asks before a call: answered with the voice of the one caller who is known by "
            "the number, or with nobody's. Whoever is known is always answered 200, within the budget."
        )
        self.request_body = OPENING_BODY
        self.parameters = [TOKEN]


@dataclass
class CompleteOperation(Operation):
    """Puts header and body of an event after a call into the description of its route."""

    def __post_init__(self) -> None:
        self.summary = "Tell what happened after a call"
        self.description = (
            "Ends the call: its agent gets back what it had before, and its voice is deleted in time. An "
            "event that is sent twice does the same as once; a call that is not known is no failure."
        )
        self.request_body = EVENT_BODY
        self.parameters = [SIGNATURE]


def responses(problem: type, statuses: Collection[int] = tuple(FAILURES)) -> dict[int, ResponseSpec]:
    """The error answers, all of one shape."""
    return {
        status: ResponseSpec(problem, generate_examples=False, description=FAILURES[status])
        for status in statuses
    }
