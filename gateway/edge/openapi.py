"""The OpenAPI description of routes that read their raw bodies, derived from the structs they parse."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import OpenAPIType, Parameter, Schema
from msgspec import Struct

__all__ = ["SIGNATURE", "fields", "responses", "sent", "text"]

FAILURES = {
    400: "The body or one of its fields is invalid; nothing was done.",
    401: "The signature is missing, malformed, expired or not ours; nothing was done.",
    403: "Webhooks are not taken from this address; nothing was done.",
    408: "The body did not arrive in time.",
    409: "The conversation was asked about for another caller.",
    413: "The body or its sample is too large.",
    415: "The body comes with a Content-Type or Content-Encoding that is not read here.",
    422: "The sample, the voice or the agent was refused.",
    429: "Too much is going on, or for this agent, or from this address; try again after Retry-After.",
    500: "A bug on our side.",
    502: "The provider refuses us, or its limits are reached.",
    503: "The provider or a part of this system cannot be reached; try again.",
    504: "There was no answer in time.",
}


# Keywords of JSON Schema that have other names in Schema.
WORDS = {"maxLength": "max_length", "minLength": "min_length", "contentEncoding": "content_encoding"}
KEPT = {"description", "pattern", "enum", *WORDS}


def text(description: str, **more: object) -> Schema:
    """A string. `more` are other fields of Schema."""
    return Schema(
        type=OpenAPIType.STRING,
        description=description,
        **more,  # type: ignore[arg-type]  # each field has a type of its own
    )


def fields(required: list[str], **properties: Schema) -> Schema:
    """An object with these fields."""
    return Schema(type=OpenAPIType.OBJECT, required=required or None, properties=dict(properties))


def sent(kind: type[Struct]) -> Schema:
    """An object as its parser reads it. A field that has no default must be sent; null is never asked for."""
    (schema,), parts = msgspec.json.schema_components([kind], ref_template="{name}")
    return _schema(schema, parts)


def _schema(found: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> Schema:
    kinds = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    if len(kinds) == 1:
        found = {**found, **kinds[0]}
    elif kinds:
        found = {**found, "type": [one["type"] for one in kinds]}
    if "$ref" in found:
        found = {**parts[found["$ref"]], **found}
    described = {WORDS.get(word, word): found[word] for word in KEPT if word in found}
    properties = {field: _schema(part, parts) for field, part in found.get("properties", {}).items()}
    if not properties:
        return Schema(type=_types(found["type"]), **described)
    return Schema(
        type=OpenAPIType.OBJECT,
        required=found.get("required") or None,
        properties=dict(properties),
        **described,
    )


def _types(found: str | list[str]) -> OpenAPIType | list[OpenAPIType]:
    return OpenAPIType(found) if isinstance(found, str) else [OpenAPIType(one) for one in found]


SIGNATURE = Parameter(
    name="ElevenLabs-Signature",
    param_in="header",
    required=True,
    description="HMAC-SHA256 of `t`, a full stop and the raw body, under the webhook's secret.",
    schema=text("`t=<unix seconds>,v0=<64 hex digits>`"),
)


def responses(problem: type, statuses: Collection[int] = tuple(FAILURES)) -> dict[int, ResponseSpec]:
    """The error answers, all of one shape."""
    return {
        status: ResponseSpec(problem, generate_examples=False, description=FAILURES[status])
        for status in statuses
    }
