"""Describes the fields of a request where they are declared. Knows no web framework."""

from msgspec import Meta

__all__ = ["described"]


def described(description: str, **schema: object) -> Meta:
    """A field's text in OpenAPI, with keywords of JSON Schema.

    The keywords check nothing: our own parser does, and names the field in its errors.
    """
    return Meta(description=description, extra_json_schema=schema)
