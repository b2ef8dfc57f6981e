"""What OpenAPI says of the initiation webhook."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, Operation, Parameter, RequestBody

from gateway.edge.openapi import sent, text
from gateway.initiation.request import SentInitiation

__all__ = ["InitiationOperation"]

INITIATION_BODY = RequestBody(
    required=True,
    description="As ElevenLabs sends it. Nothing is required, and unknown fields are ignored.",
    content={"application/json": OpenAPIMediaType(schema=sent(SentInitiation))},
)
TOKEN = Parameter(
    name="Authorization",
    param_in="header",
    required=False,
    description="Required unless the body is signed.",
    schema=text("`Bearer <CONVERSATION_INIT_TOKEN>`"),
)


@dataclass
class InitiationOperation(Operation):
    """Puts header and body of an initiation webhook into the description of its route."""

    def __post_init__(self) -> None:
        self.summary = "Open a call"
        self.description = (
            "What ElevenLabs asks before a call: answered with the voice of the one caller who is known by "
            "the number, or with nobody's. Whoever is known is always answered 200, within the budget."
        )
        self.request_body = INITIATION_BODY
        self.parameters = [TOKEN]
