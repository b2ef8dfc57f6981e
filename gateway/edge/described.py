"""Describes the fields of a request where they are declared. Knows no web framework."""

from msgspec import Meta

__all__ = ["described"]


def described(description: str, **schema: object) -> Meta:
    """The text, and words of JSON Schema, that OpenAPI has for a field.

    Nothing is checked by it: our own errors name the sender's field.
    """
    return Meta(description=description, extra_json_schema=schema)
