"""What may happen to a deployment, one step at a time, and how hypothesis makes it up."""

from typing import Any, Literal

from hypothesis import strategies as st
from msgspec import Struct

CALLERS = (0, 1, 2)
AGENTS = ("agent_one", "agent_two")


class Deliver(Struct, frozen=True):
    """A call is about to start; told several times at once, the second time to the other replica, and so on."""

    caller: int
    agent: str
    conversation: int
    replica: int
    times: int
    patient: bool
    wait: bool


class Open(Struct, frozen=True):
    """A call is about to start of which the number is all that is known, which may be somebody else's.

    With `line`, it is one that has no conversation yet.
    """

    caller: int
    number: int
    agent: str
    conversation: int
    line: bool
    replica: int
    times: int
    wait: bool


class Enrol(Struct, frozen=True):
    """A caller's voice is taken ahead of time."""

    caller: int
    replica: int
    patient: bool
    wait: bool


class End(Struct, frozen=True):
    """A call is over, which may never have begun.

    It is told by its conversation, by the id that was answered for it or for its line, or by both.
    """

    caller: int
    agent: str
    conversation: int
    replica: int
    way: Literal["conversation", "call", "line", "both"]


class Forget(Struct, frozen=True):
    """A caller wants to be forgotten: as a person, as a number, or as a voice."""

    caller: int
    way: Literal["person", "number", "voice"]
    replica: int
    wait: bool


class Replace(Struct, frozen=True):
    """A voice turned out wrong."""

    caller: int
    replica: int
    patient: bool
    wait: bool


class Break(Struct, frozen=True):
    """The provider misbehaves from now on, so many times."""

    request: str
    how: str
    times: int


class Mend(Struct, frozen=True):
    """The provider behaves again, and what it held goes on."""


class Fill(Struct, frozen=True):
    """All of the provider's voice slots are taken, or there is room again."""

    full: bool


class Vanish(Struct, frozen=True):
    """Somebody deletes a caller's voices by hand."""

    caller: int


class Edit(Struct, frozen=True):
    """Somebody changes an agent by hand."""

    agent: str
    voice: bool
    first_message: bool


class Kill(Struct, frozen=True):
    """A replica is killed."""

    replica: int


class Start(Struct, frozen=True):
    """A replica that was killed is started again."""

    replica: int


class Jump(Struct, frozen=True):
    """Time passes for everybody."""

    seconds: float


class Pause(Struct, frozen=True):
    """A moment passes, in which what is under way goes on."""

    seconds: float


class Quiet(Struct, frozen=True):
    """Everything is mended and settles; then a caller calls again."""

    caller: int


REQUESTS = {
    "create": ("POST", "/v1/voices/add"),
    "search": ("GET", "/v2/voices"),
    "check": ("GET", "/v1/voices/{voice_id}"),
    "delete": ("DELETE", "/v1/voices/{voice_id}"),
    "read": ("GET", "/v1/convai/agents/{agent_id}"),
    "update": ("PATCH", "/v1/convai/agents/{agent_id}"),
}
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"error": "rate_limit_exceeded"},
    "500": {"error": "internal_error"},
    "502": {"error": "html"},
    "dropped": {"drop": "before"},
    "done and dropped": {"drop": "after"},
    "truncated": {"truncate": True},
    "slow": {"delay_seconds": 0.3},
    "held": {"hold": "before"},
    "done and held": {"hold": "after"},
}
UNSEEN_SEARCHES = 4
UNSEEN = {"search_lag": {"searches": UNSEEN_SEARCHES}}
CREATE_FAULTS: dict[str, dict[str, Any]] = {
    **FAULTS,
    "unverified": {"requires_verification": True},
    "unseen": UNSEEN,
    "unseen and dropped": {**UNSEEN, "drop": "after"},
    "unseen and held": {**UNSEEN, "hold": "after"},
    "unseen for long and truncated": {"search_lag": {"seconds": 30}, "truncate": True},
}

# Few of each, so that steps meet.
caller = st.sampled_from((0, 0, 0, 1, 2))
agent = st.sampled_from((AGENTS[0], AGENTS[0], AGENTS[0], AGENTS[1]))
conversation = st.sampled_from((0, 0, 0, 1))
replica = st.integers(0, 1)
times = st.sampled_from((1, 1, 2, 5))
often = st.sampled_from((True, True, True, False))

deliver = st.builds(
    Deliver, caller, agent, conversation, replica, st.sampled_from((1, 1, 1, 2, 4)), often, st.booleans()
)
whose = caller.flatmap(lambda n: st.tuples(st.just(n), st.sampled_from((n, n, n, n, *CALLERS))))
open_ = st.tuples(whose, agent, conversation, st.sampled_from((False, False, False, True))).flatmap(
    lambda drawn: st.builds(
        Open,
        st.just(drawn[0][0]),
        st.just(drawn[0][1]),
        *map(st.just, drawn[1:]),
        replica,
        st.sampled_from((1, 1, 2)),
        st.booleans(),
    )
)
enrol = st.builds(Enrol, caller, replica, often, st.booleans())
way: st.SearchStrategy[Any] = st.sampled_from((*["conversation"] * 3, "call", "line", "both"))
end = st.builds(End, caller, agent, conversation, replica, way)
break_ = st.one_of(
    st.builds(Break, st.sampled_from(sorted(REQUESTS)), st.sampled_from(sorted(FAULTS)), times),
    st.builds(Break, st.just("create"), st.sampled_from(sorted(CREATE_FAULTS)), times),
)
jump = st.builds(Jump, st.sampled_from((1.0, 9.0, 9.0, 130.0, 700.0, 4_000.0, 8_000.0)))
pause = st.builds(Pause, st.sampled_from((0.03, 0.3, 1.1)))
kill = st.builds(Kill, replica)

# By how often each is taken.
singles: list[tuple[int, st.SearchStrategy[Any]]] = [
    (9, deliver),
    (4, open_),
    (2, enrol),
    (4, end),
    (2, st.builds(Forget, caller, st.sampled_from(("person", "number", "voice")), replica, often)),
    (2, st.builds(Replace, caller, replica, often, st.booleans())),
    (3, break_),
    (2, st.builds(Mend)),
    (1, st.builds(Fill, often)),
    (2, st.builds(Vanish, caller)),
    (2, st.builds(Edit, agent, st.booleans(), st.booleans())),
    (1, kill),
    (2, st.builds(Start, replica)),
    (2, jump),
    (3, pause),
    (1, st.builds(Quiet, caller)),
]
# Listed as often as it is to be taken, because `one_of` takes each once.
single = st.sampled_from([n for n, (weight, _) in enumerate(singles) for _ in range(weight)]).flatmap(
    lambda n: singles[n][1].map(lambda step: [step])
)


def _killed_at_it(broken: Break, begun: Any, moment: Pause, killed: Kill, later: Jump) -> list[Any]:
    return [broken, begun, moment, killed, later]


begun = st.builds(Deliver, caller, agent, conversation, replica, st.just(1), often, st.just(False))
# Chance alone would seldom put these in this order: a process dies while the provider is at its request.
scene = st.builds(
    _killed_at_it,
    break_,
    st.sampled_from((0, 0, 1)).flatmap((begun, end).__getitem__),
    st.builds(Pause, st.just(0.1)),
    kill,
    jump,
)


def _assumed(
    calls: tuple[int, int, str, int], how: str, replica: int, moment: float, delivered_first: bool
) -> list[Any]:
    known, caller, agent, conversation = calls
    delivered = Deliver(caller, agent, conversation, replica, 1, patient=True, wait=not delivered_first)
    opened = Open(caller, known, agent, conversation, line=False, replica=replica + 1, times=1, wait=True)
    order = [delivered, Pause(moment), opened] if delivered_first else [opened, Pause(moment), delivered]
    return [Enrol(known, replica, patient=True, wait=True), Break("read", how, 1), *order, Mend()]


# Nor these: a call is delivered just when its number finds the voice of somebody else.
assumed = st.builds(
    _assumed,
    st.tuples(st.sampled_from((0, 0, 2)), st.just(1), agent, conversation),
    st.sampled_from(("slow", "held")),
    replica,
    st.sampled_from((0.03, 0.1)),
    st.booleans(),
)

steps = st.lists(
    st.sampled_from((*([single] * 16), scene, scene, assumed)).flatmap(lambda kind: kind),
    min_size=8,
    max_size=14,
).map(lambda parts: [step for part in parts for step in part])
