"""Why a call is refused before any work is done for it.

Refused                   at fault              waiting helps
├── MalformedMessage      the caller            no
├── BodyTooLarge          the caller            no
├── BodyTimeout           the caller's network  no
├── MethodUnknown         the caller            no
├── ServiceUnknown        the caller            no
├── TooManyWatchers       nobody                no: calls are served without
├── Unauthenticated       the caller            no
├── PermissionDenied      the caller            no
├── ClientOverloaded      the caller            yes
├── Overloaded            nobody                yes
└── Stopping              nobody                yes
"""

from typing import ClassVar

__all__ = [
    "BodyTimeout",
    "BodyTooLarge",
    "ClientOverloaded",
    "MalformedMessage",
    "MetadataTooLarge",
    "MethodUnknown",
    "Overloaded",
    "PermissionDenied",
    "Refused",
    "ServiceUnknown",
    "Stopping",
    "TooManyWatchers",
    "Unauthenticated",
]


class Refused(Exception):
    """A call that is refused. Its text is one fixed sentence; `facts` are sent beside it."""

    sentence: ClassVar[str]

    def __init__(self, **facts: str) -> None:
        super().__init__(self.sentence)
        self.facts = facts


class MalformedMessage(Refused):
    """The bytes of the request are not a message of its type, or there are none."""

    sentence = "The request is not a message of the type that this method takes."


class BodyTooLarge(Refused):
    """The request is larger than allowed."""

    sentence = "The request is larger than this method takes."

    def __init__(self, *, limit: int, actual: int) -> None:
        super().__init__(limit_bytes=str(limit), actual_bytes=str(actual))


class MetadataTooLarge(BodyTooLarge):
    """The metadata of the request are larger than allowed."""

    sentence = "The metadata of the request is larger than this server takes."


class BodyTimeout(Refused):
    """The request did not arrive in full in the time that it has."""

    sentence = "The request did not arrive in time."


class MethodUnknown(Refused):
    """There is no such service, or it has no such method."""

    sentence = "This server has no such method."


class ServiceUnknown(Refused):
    """A client asked for the health of a service that is not served here."""

    sentence = "This server has no such service."


class TooManyWatchers(Refused):
    """Too many clients watch the health. gRPC clients that get this answer take the server to be healthy."""

    sentence = (
        "Too many clients watch the health already: call Check instead, or treat this server as healthy."
    )


class Unauthenticated(Refused):
    """The call carries no token of a known client."""

    sentence = "Send the metadata `authorization: Bearer <token>` with a token of this server."


class PermissionDenied(Refused):
    """The client is known but may not call this method."""

    sentence = "This method needs a right that this client does not have."

    def __init__(self, *, client: str, right: str) -> None:
        super().__init__(client=client, missing_right=right)


class ClientOverloaded(Refused):
    """The client has as many calls under way as it may have at once."""

    sentence = "This client has as many requests under way as it may have; try again in a moment."

    def __init__(self, *, limit: int) -> None:
        super().__init__(limit_requests=str(limit))


class Overloaded(Refused):
    """The limit of calls, or of bytes of samples, is reached; `facts` may hold the limit."""

    reason = "RATE_LIMITED"
    sentence = "Too much is going on at once; try again in a moment."


class Stopping(Refused):
    """This process is about to end. Another one may take the call."""

    sentence = "This process is stopping; try again, so that another one takes the call."
