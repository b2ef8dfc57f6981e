"""What OpenAPI says of events after a call."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody

from gateway.edge.openapi import SIGNATURE, sent
from gateway.postcall.request import SentEvent

__all__ = ["CompleteOperation"]

EVENT_BODY = RequestBody(
    required=True,
    description="The event as ElevenLabs sends it. Unknown fields are ignored. `conversation_id`, "
    "or `agent_id` with `precall_call_id` or `voice_id`: one of them names the call.",
    content={"application/json": OpenAPIMediaType(schema=sent(SentEvent))},
)


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
