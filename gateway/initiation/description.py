"""What OpenAPI says of the initiation webhook."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, RequestBody

from gateway.edge.openapi import fields, text

__all__ = ["OpenOperation"]

OPENING = fields(
    [],
    caller_id=text("The number that calls: the person's, or on an outbound call one of our own."),
    called_number=text("The number that is called."),
    agent_id=text("The agent that takes the call."),
    call_sid=text("What the telephone line calls it. Empty for WhatsApp and SMS."),
    conversation_id=text("The conversation that is about to start."),
    call_id=text("As `call_sid`, of a SIP call."),
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
    schema=text("`Bearer <CONVERSATION_INIT_TOKEN>`"),
)


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
