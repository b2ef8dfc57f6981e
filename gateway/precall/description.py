"""The OpenAPI description of deliveries: what their parser reads."""

from dataclasses import dataclass

from litestar.openapi.spec import OpenAPIFormat, OpenAPIMediaType, Operation, RequestBody

from gateway.edge.form import MAX_PARTS
from gateway.edge.openapi import SIGNATURE, fields, sent, text
from gateway.precall.request import SentDelivery, SentMetadata

__all__ = ["DeliverOperation"]

BODY = RequestBody(
    required=True,
    description="The signature covers the raw body in both forms. Unknown fields are ignored. A form has at "
    f"most {MAX_PARTS} parts.",
    content={
        "application/json": OpenAPIMediaType(schema=sent(SentDelivery)),
        "multipart/form-data": OpenAPIMediaType(
            schema=fields(
                ["metadata", "voice_sample"],
                metadata=sent(SentMetadata),
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
