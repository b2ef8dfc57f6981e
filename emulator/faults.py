"""How the provider can be made to misbehave.

A fault says for which requests (`method`, `path`), how often (`times`) and what goes wrong. What goes wrong
may be combined; it happens in this order:

1. `delay_seconds`: nothing for so long
2. `hold: "before"`: nothing until `release()`
3. `drop: "before"`: the connection is closed and no work was done
4. `status` or `error`: that answer, and no work was done (`work_done`: all of it); without either: the work
5. `hold: "after"`: nothing until `release()`, the work done
6. `drop: "after"`: the connection is closed, the work done
7. `truncate`: the answer's head and half of its body, then the connection is closed

`requires_verification`, `library_voice_match` and `search_lag` change the work of `POST /v1/voices/add`
itself, `default_voices` that of `GET /v2/voices`. Faults take effect before the API key is checked, as those
of a proxy do.
"""

import asyncio
import http
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec

from emulator.answer import Answer
from emulator.errors import ERRORS
from emulator.journal import Received
from emulator.routes import Routes

Moment = Literal["before", "after"]
Duration = Annotated[float, msgspec.Meta(ge=0, le=3600)]

CREATE = ("POST", "/v1/voices/add")
SEARCH = ("GET", "/v2/voices")
NO_BODY = (204, 304)


class SearchLag(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long listings miss a new voice: for seconds, or for so many listings that should show it."""

    seconds: Duration = 0
    searches: Annotated[int, msgspec.Meta(ge=0)] = 0


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One way to misbehave. What contradicts itself raises `ValueError`."""

    method: str
    path: str
    """A template such as `/v1/voices/{voice_id}`, or the path of one resource."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = 1
    """Requests still to be hit; None for all of them."""
    delay_seconds: Duration = 0
    hold: Moment | None = None
    drop: Moment | None = None
    status: Annotated[int, msgspec.Meta(ge=200, le=599)] | None = None
    body: Any = msgspec.UNSET
    """With `status`: JSON, or text sent as it stands; left out, `{"detail": <the status in words>}`."""
    error: str | None = None
    """A name in `emulator.errors.ERRORS`."""
    headers: dict[str, str] = {}
    """With `status` or `error`: more headers, such as `Retry-After`."""
    work_done: bool = False
    """With `status` or `error`: the work is done all the same, and only the answer is another."""
    truncate: bool = False
    requires_verification: bool = False
    library_voice_match: bool = False
    """The voice is like one of the library: it has to be verified, and the answer says no more than which."""
    search_lag: SearchLag | None = None
    default_voices: bool = False
    """Premade voices are added to the first page whatever the search asks for, also for a category."""

    def __post_init__(self) -> None:
        """Refuse a fault that could not do what it says."""
        answers = self.status is not None or self.error is not None
        if self.status is not None and self.error is not None:
            raise ValueError("status and error exclude each other")
        if self.error is not None and self.error not in ERRORS:
            raise ValueError(f"no such error: {self.error}")
        if self.status is None and self.body is not msgspec.UNSET:
            raise ValueError("body needs status")
        if self.status in NO_BODY and self.body is not msgspec.UNSET:
            raise ValueError(f"an answer of {self.status} has no body")
        if (self.headers or self.work_done) and not answers:
            raise ValueError("headers and work_done need status or error")
        if not all(re.fullmatch(r"[\w-]+:[ -~]*", f"{k}:{v}", re.ASCII) for k, v in self.headers.items()):
            raise ValueError("headers must be printable ASCII")
        of_create = self.requires_verification or self.library_voice_match or self.search_lag
        if of_create and (self.method, self.path) != CREATE:
            raise ValueError(
                "requires_verification, library_voice_match and search_lag are for POST /v1/voices/add"
            )
        if self.default_voices and (self.method, self.path) != SEARCH:
            raise ValueError("default_voices is for GET /v2/voices")

    def answer(self, trace_id: str) -> Answer | None:
        """What is answered instead of doing the work; None to do the work."""
        if self.error is not None:
            answer = ERRORS[self.error].answer(trace_id)
        elif self.status is not None:
            answer = _stated(self.status, self.body)
        else:
            return None
        more = {name.lower(): value for name, value in self.headers.items()}
        return Answer(status=answer.status, headers=answer.headers | more, body=answer.body)


NO_FAULT = Fault(method="", path="")


class Faults:
    """The coming faults, in order: each request is hit by the first one that fits."""

    def __init__(self, routes: Routes) -> None:
        """Start with none; the routes are those that a fault can be for."""
        self._routes = routes
        self._faults: list[Fault] = []
        self._gate = asyncio.Event()
        self.held = 0
        """Requests that wait for `release()` now."""

    def __iter__(self) -> Iterator[Fault]:
        """Those still to come, with the times that are left of them."""
        return iter(tuple(self._faults))

    def set(self, *faults: Fault) -> None:
        """Put copies of these in place of what was to come; `ValueError` if the API has no such request."""
        for fault in faults:
            if not self._routes.take(fault.method, fault.path):
                raise ValueError(f"no such request: {fault.method} {fault.path}")
        self._faults = [msgspec.structs.replace(fault) for fault in faults]

    def clear(self) -> None:
        """Remove all faults; what is held is released."""
        self._faults = []
        self.release()

    def take(self, received: Received) -> Fault:
        """The fault that hits this request, which is counted; `NO_FAULT` if there is none."""
        for fault in self._faults:
            if fault.method == received.method and fault.path in (received.route, received.path):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return NO_FAULT

    async def hold(self) -> None:
        """Wait for the next `release()`."""
        self.held += 1
        await self._gate.wait()

    def release(self) -> int:
        """Let everything that is held go on, and say how many that were; what comes later is held again."""
        self._gate.set()
        self._gate = asyncio.Event()
        released, self.held = self.held, 0
        return released


def _stated(status: int, body: Any) -> Answer:
    if status in NO_BODY:
        return Answer(status=status)
    if isinstance(body, str):
        return Answer(status=status, headers={"content-type": "text/plain"}, body=body.encode())
    if body is msgspec.UNSET:
        phrases = {known.value: known.phrase for known in http.HTTPStatus}
        body = {"detail": phrases.get(status, "Unknown Error")}
    return Answer(status=status, headers={"content-type": "application/json"}, body=msgspec.json.encode(body))
