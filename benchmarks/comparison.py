"""The rows in which the peer stands beside this system."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice

import uvloop

from benchmarks.client import send
from benchmarks.deliveries import SIZES, Form, Request, deliveries, initiations, speech
from benchmarks.report import Row, at_least, at_most, times
from benchmarks.system import Subject
from benchmarks.turns import FASTEST, Length, Measured, Side, measured

__all__ = [
    "KNOWN",
    "NEW",
    "OVERRIDE",
    "VOICE",
    "known_callers",
    "known_rows",
    "make_known",
    "new_rows",
    "warm",
]

# What an answer holds that went the whole way.
VOICE = b'"voice_id":"'
NEW = b'"voice_reused":false'
KNOWN = b'"voice_reused":true'
OVERRIDE = b'"conversation_config_override"'

CALLERS = 16
SMALL = SIZES["200 KB"]
FORMS: tuple[Form, ...] = ("JSON", "form")
FAST = 1_500  # initiations in a second that nobody reaches


def warm(length: Length, *subjects: Subject) -> None:
    """Sends each some deliveries, so that what is done once is done."""
    sample = speech(SMALL)
    for subject in subjects:
        for form in FORMS:
            requests = islice(deliveries(sample, form), length.warm)
            uvloop.run(send(subject.url, requests, at_once=8, seconds=60, expected=VOICE))


def new_rows(
    peer: Subject, ours: Subject, length: Length, names: Iterable[str] = tuple(SIZES)
) -> tuple[list[Row], Measured]:
    """New callers, of each size and form; and what the peer does at 200 KB, to which others are held."""
    found = []
    standard: Measured | None = None
    for name in names:
        size = SIZES[name]
        sample = speech(size)
        at_once = 4 if name == "10 MB" else 8
        for form in FORMS:
            theirs, own = measured(
                [_new(peer, sample, form, VOICE), _new(ours, sample, form, NEW)],
                length, at_once=at_once, fastest=FASTEST[size],
            )  # fmt: skip
            standard = standard or theirs
            verdict = at_least(own.rate / theirs.rate, 1.0 if name == "200 KB" else 1.3, "rate x ")
            verdict += f", CPU x {times(own.cpu, theirs.cpu):.2f}"
            found.append(Row(f"new caller, {name} {form}, {at_once} at once", theirs, own, verdict))
    assert standard is not None  # noqa: S101 - there are sizes
    sample = speech(SMALL)
    theirs, own = measured(
        [_new(peer, sample, "JSON", VOICE, agents=1), _new(ours, sample, "JSON", NEW, agents=1)],
        length, at_once=8, fastest=FASTEST[SMALL],
    )  # fmt: skip
    found.append(
        Row("the same, 200 KB JSON, all at one agent", theirs, own, f"rate x {own.rate / theirs.rate:.2f}")
    )
    theirs, own = measured(
        [_new(peer, sample, "JSON", VOICE), _new(ours, sample, "JSON", NEW)],
        length, at_once=1, fastest=FASTEST[SMALL],
    )  # fmt: skip
    half = own.answered.quantile(0.5) / theirs.answered.quantile(0.5)
    found.append(Row("new caller, 200 KB JSON, alone", theirs, own, at_most(half, 1.25, "p50 x ")))
    return found, standard


def known_rows(ours: Subject, standard: Measured, length: Length) -> list[Row]:
    """Callers who are known, which the peer has not: held to what it does with new ones."""
    make_known(ours)
    found = []
    for agents, where in ((None, ""), (1, ", all at one agent")):
        (many,) = measured([known_callers(ours, agents)], length, at_once=16, fastest=FASTEST[SMALL])
        verdict = at_least(many.rate / standard.rate, 1.5, "rate x ")
        found.append(Row(f"known caller, 200 KB JSON, 16 at once{where}", None, many, verdict))
        (alone,) = measured([known_callers(ours, agents)], length, at_once=1, fastest=FASTEST[SMALL])
        verdict = at_most(alone.answered.quantile(0.5), 5, "p50 ", " ms")
        found.append(Row(f"known caller, alone{where}", None, alone, verdict))
    asked = Side(ours, partial(initiations, CALLERS), OVERRIDE)
    (many,) = measured([asked], length, at_once=50, fastest=FAST)
    verdict = ", ".join((
        at_least(many.rate, 500, "", "/s"), at_most(many.answered.quantile(0.99), 200, "p99 ", " ms"),
    ))  # fmt: skip
    found.append(Row("initiation webhook of a known caller, 50 at once", None, many, verdict))
    (alone,) = measured([asked], length, at_once=1, fastest=FAST)
    verdict = at_most(alone.answered.quantile(0.5), 4, "p50 ", " ms")
    found.append(Row("initiation webhook, alone", None, alone, verdict))
    return found


def make_known(ours: Subject) -> None:
    """Sends one delivery of each of those who are known from then on."""
    requests = islice(deliveries(speech(SMALL), "JSON", callers=CALLERS), CALLERS)
    uvloop.run(send(ours.url, requests, at_once=4, seconds=60, expected=VOICE))


def known_callers(ours: Subject, agents: int | None = None) -> Side:
    """Deliveries of those whom `make_known` made known."""
    return Side(ours, _endless(speech(SMALL), "JSON", callers=CALLERS, agents=agents), KNOWN)


def _new(subject: Subject, sample: bytes, form: Form, expected: bytes, agents: int | None = None) -> Side:
    return Side(subject, _endless(sample, form, agents=agents), expected)


def _endless(
    sample: bytes, form: Form, *, callers: int | None = None, agents: int | None = None
) -> Callable[[], Iterator[Request]]:
    return partial(deliveries, sample, form, callers=callers, agents=agents)
