"""The OpenAPI description of deliveries: what their parser reads, and what is sent beside that."""

from dataclasses import dataclass

from litestar.openapi.spec import (
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    RequestBody,
    Schema,
)

from gateway.edge.openapi import SIGNATURE, fields, sent, text
from gateway.precall.request import SentDelivery, SentMetadata

__all__ = ["DeliverOperation"]

ALWAYS = ["type", "conversation_id", "agent_id"]
REQUIRED = {
    "SentMetadata": ALWAYS,
    "SentDelivery": [*ALWAYS, "voice_sample"],
    "SentSample": ["data"],
}
# Fields that senders send and nobody reads.
HINTS = {
    "duration_seconds": Schema(type=OpenAPIType.NUMBER, description="A hint. What the audio says counts."),
    "sample_rate": Schema(type=OpenAPIType.INTEGER, description="A hint. What the audio says counts."),
}
STAMP = Schema(type=OpenAPIType.INTEGER, description="Unix seconds. Not used.")


def _event(kind: type[SentMetadata]) -> Schema:
    event = sent(kind, required=REQUIRED)
    properties = event.properties or {}
    properties["event_timestamp"] = STAMP
    if isinstance(sample := properties.get("voice_sample"), Schema):
        (sample.properties or {}).update(HINTS)
    return event


BODY = RequestBody(
    required=True,
    description="The signature covers the raw body in both forms. Unknown fields are ignored.",
    content={
        "application/json": OpenAPIMediaType(schema=_event(SentDelivery)),
        "multipart/form-data": OpenAPIMediaType(
            schema=fields(
                ["metadata", "voice_sample"],
                metadata=_event(SentMetadata),
                voice_sample=text("The recording as a file.", format=OpenAPIFormat.BINARY),
            )
        ),
    },
)


@dataclass
class DeliverOperation(Operation):
    """Puts header and bodies of a delivery into the description of its route."""

    def __post_init__(self) -> None:
        self.summary = "Prepare a call"
        self.description = "Clones the caller's voice, or finds it, and gives it to the agent."
        self.request_body = BODY
        self.parameters = [SIGNATURE]
