"""What OpenAPI says of events after a call."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIMediaType, Operation, RequestBody, Schema

from gateway.edge.openapi import SIGNATURE, fields, text

__all__ = ["CompleteOperation"]

EVENT = fields(
    ["type", "data"],
    type=text(
        "`post_call_transcription`, `post_call_transcription_otel` and `call_initiation_failure` end the "
        "call. `post_call_audio` and whatever else there is end nothing."
    ),
    event_timestamp=Schema(description="Not used."),
    data=fields(
        [],
        conversation_id=text("The conversation that is over.", max_length=256),
        agent_id=text("The agent that took the call."),
        conversation_initiation_client_data=fields(
            [],
            dynamic_variables=fields([], precall_call_id=text("As our own answer before the call said it.")),
            conversation_config_override=fields(
                [], tts=fields([], voice_id=text("As our own answer before the call said it."))
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
