import asyncio
import contextlib
import gc
import io
import os
import random
import shutil
import signal
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from emulator import NO_LATENCY, Emulator, Settings
from environment.memory import collect_seldom, spare_modules
from telemetry.tracing import described, provider_of
from tests.kit import forkserver, golang, surroundings, worker
from tests.kit.child import fork_from
from tests.kit.databases import Databases, migrated_sqlite
from tests.kit.inspection import Inspection
from tests.kit.postgres import drop_database, new_database, url_in
from tests.kit.postgres import running as running_postgres
from tests.kit.storage import keep_in_memory

SAMPLES = Path(__file__).parent / "samples"
API_KEY = "key-of-the-emulator"
BY_ITSELF = {"reconcile", "delete voice", "restore agent", "resume clone", "adopt voice", "finish clone"}

# How often something is looked at that sets no event. Every 5 ms took all tests 2 % more processor time.
POLL_SECONDS = 0.02
# Nobody waits as long on a machine that does nothing else; a busy one may stand still for seconds.
LONG_SECONDS = 30

# Long tests begin while this part of the others is done.
LONG_WITHIN = 0.9

LEFT_OUT = "left out"
SHARED: pytest.StashKey[dict[str, str]] = pytest.StashKey()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was not tried on this machine, for want of a tool."""
    for report in terminalreporter.getreports("passed"):
        for name, what in report.user_properties:
            if name == LEFT_OUT:
                terminalreporter.write_line(f"left out: {what} ({report.nodeid})")


def pytest_configure(config: pytest.Config) -> None:
    """Keeps files in memory and settings out, and lets SIGTERM and SIGHUP end the tests as Ctrl-C does.

    What the tests started stops then, and what they made goes.
    """
    keep_in_memory()
    surroundings.forget(os.environ)
    # How fast examples run and are made is told by how busy the machine is.
    hypothesis.settings.register_profile(
        "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("any machine")
    is_worker = hasattr(config, "workerinput")
    if is_worker:
        fork_from(config.workerinput["forkserver"])

    def interrupt(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        if not is_worker:
            for child in psutil.Process().children():
                child.send_signal(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)
    # Tests in the background ignore these two, and so would whatever they start, which inherits that; it does not
    # inherit a handler that does nothing.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """Has all workers, and what they fork, forked from one process that has imported everything.

    Importing took each of them a second of processor time.
    """
    address = _while_tests_run(config, forkserver.running())
    config.stash[SHARED] = {"forkserver": address}
    specs[:] = [type(spec)(f"{spec}//python={worker.interpreter(address)}") for spec in specs]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Has one Postgres serve the tests of all workers. One for each took 1.4 s of processor time.

    And gives workers that are told to end as long as a busy machine needs for that, before they are killed.
    """
    node.nodemanager.EXIT_TIMEOUT = LONG_SECONDS
    shared = node.config.stash[SHARED]
    if "postgres" not in shared:
        shared["postgres"] = _while_tests_run(node.config, running_postgres())
    node.workerinput.update(shared)


def _while_tests_run(config: pytest.Config, block: contextlib.AbstractContextManager[str]) -> str:
    """What the block yields, which is left when all tests are done."""
    with contextlib.ExitStack() as opened:
        entered = opened.enter_context(block)
        config.add_cleanup(opened.pop_all().close)
    return entered


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spreads the long tests evenly over the workers and among the short tests.

    pytest-xdist gives each worker a run of tests that stand side by side, in the same order to all. Most of a long
    test is waiting, for which others may use the processor; so not all workers wait at once, and none begins a long
    one when the others are done. The others stay beside those of their module, so that few workers import and
    start what they share. Modules of one folder wait for the same things, so they are mixed with those of others:
    in the order of their names, all workers waited at once for a tenth of the time.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        dealt = random.Random(0)  # the same in each
        places: dict[Path, float] = {}
        items.sort(key=lambda item: places.setdefault(item.path, dealt.random()))
    long = [item for item in items if item.get_closest_marker("long")]
    # One of those that take longest, begun as the last, would have all workers but one wait at the end.
    long.sort(key=lambda item: not item.get_closest_marker("long").kwargs.get("first", False))
    short = [item for item in items if not item.get_closest_marker("long")]
    ends = [len(short) * worker // workers for worker in range(workers + 1)]
    items[:] = [
        item
        for worker in range(workers)
        for item in _mixed(
            long[worker::workers], short[ends[worker] : ends[worker + 1]], later=worker / workers
        )
    ]


def _mixed(long: list[pytest.Item], short: list[pytest.Item], *, later: float) -> Iterator[pytest.Item]:
    """Begins each long test `later` (a share of the distance between two) than an even spread would."""
    step = len(short) * LONG_WITHIN / max(1, len(long))
    begin = 0
    for number, item in enumerate(long):
        end = int((number + later) * step)
        yield from short[begin:end]
        yield item
        begin = end
    yield from short[begin:]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collects tests without collecting garbage, of which they make none: it took a sixth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Spares the garbage collector what all tests share: looking through it took a tenth of their time.

    And it looks as seldom as it does in gateway and cloner.
    """
    spare_modules()
    collect_seldom()


@cache
def described_once(service: str) -> Resource:
    """What a process says of itself in each span. Finding that out takes a thread for each who knows a part of it."""
    return described(service, {})


class Spans:
    """What was traced, by every process that shares this exporter."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def provider(self, service: str) -> TracerProvider:
        """A tracer provider whose spans end up here at once."""
        provider = provider_of(described_once(service))
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        return provider

    def finished(self, name: str | None = None) -> list[ReadableSpan]:
        """The spans that have ended, all or those of one name, in the order they ended."""
        return [span for span in self.exporter.get_finished_spans() if name in (None, span.name)]

    def of_delivery(self) -> list[ReadableSpan]:
        """What was traced, but for traces that the cloner begins by itself, ended or not."""
        ended = self.finished()
        begun = {
            span.context.trace_id for span in ended if span.parent is None and span.name not in BY_ITSELF
        }
        return [span for span in ended if span.context.trace_id in begun]

    def one(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        (span,) = self.finished(name)
        return span

    async def wait(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """The spans of this name, once there are as many."""
        async with asyncio.timeout(LONG_SECONDS):
            while len(found := self.finished(name)) < count:
                await asyncio.sleep(POLL_SECONDS)
        return found


@pytest.fixture
def spans() -> Spans:
    """Collects what is traced."""
    return Spans()


@pytest.fixture
def left_out(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says at the end of the tests what was not tried, for want of a tool on this machine."""
    return lambda what: record_property(LEFT_OUT, what)


@pytest.fixture
def speech() -> bytes:
    """A little over five seconds of synthetic speech, as WAV."""
    return (SAMPLES / "ulaw.wav").read_bytes()


@pytest.fixture
def samples() -> Path:
    """The folder of recordings."""
    return SAMPLES


@pytest.fixture
def silence() -> Callable[..., bytes]:
    """Makes WAV files that hold nothing."""

    def make(seconds: float, rate: int = 44_100) -> bytes:
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(1)
            writer.setsampwidth(2)
            writer.setframerate(rate)
            writer.writeframes(bytes(2 * round(seconds * rate)))
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def uv() -> str:
    """The uv that runs these tests, or the one on the path."""
    return os.environ.get("UV") or shutil.which("uv") or pytest.fail("no uv: run the tests by `just test`")


@pytest.fixture
def compiling_go(tmp_path_factory: pytest.TempPathFactory) -> contextlib.AbstractAsyncContextManager[None]:
    """A block in which no other test compiles in Go."""
    return golang.alone(tmp_path_factory.getbasetemp().parent)


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Postgres server, as a URL without a database. Other workers of pytest may use it, too."""
    workerinput = getattr(request.config, "workerinput", None)
    if workerinput is not None:
        yield url_in(workerinput["postgres"])
        return
    with running_postgres() as file:
        yield url_in(file)


@pytest.fixture(scope="session")
def inspection() -> Iterator[Inspection]:
    """An audio worker that is open, for every cloner that wants no other."""
    with Inspection() as opened:
        yield opened


@pytest.fixture(scope="session")
def databases(postgres: str) -> Databases:
    """The databases of the Postgres server."""
    return Databases(postgres)


@pytest.fixture(scope="session")
def migrated_file() -> bytes:
    """What a SQLite file with all tables and no rows holds."""
    return migrated_sqlite()


@pytest.fixture
def sqlite(tmp_path: Path, migrated_file: bytes) -> str:
    """The URL of a SQLite database with all tables and no rows."""
    path = tmp_path / "precall.sqlite3"
    path.write_bytes(migrated_file)
    return f"sqlite:///{path}"


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database with all tables and no rows, of each kind."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite")
        return
    databases = request.getfixturevalue("databases")
    url = databases.take()
    yield url
    databases.give_back(url)


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with nothing in it, of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.sqlite3"
        return
    url = new_database(request.getfixturevalue("postgres"))
    yield url
    drop_database(url)


@pytest.fixture
def emulator() -> Emulator:
    """The provider, with no latency of its own. `emulator_url` is where it listens."""
    return Emulator(
        Settings(
            api_key=API_KEY,
            latency=NO_LATENCY,
            create_latency=NO_LATENCY,
            voice_limit=500,
            monthly_limit=None,
        )
    )


@pytest.fixture
async def emulator_url(emulator: Emulator) -> AsyncIterator[str]:
    """Where the provider listens."""
    async with emulator.listening() as url:
        yield url


@pytest.fixture
def asked(emulator: Emulator) -> Callable[[], list[str]]:
    """Says what the provider was asked, but for the searches by which a cloner reconciles when it starts."""
    return lambda: [request.path for request in emulator.requests if request.path != "/v2/voices"]


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], Awaitable[None]]:
    """Waits until something holds, and fails when it does not within half a minute."""

    async def wait(holds: Callable[[], object]) -> None:
        async with asyncio.timeout(LONG_SECONDS):
            while not holds():
                await asyncio.sleep(POLL_SECONDS)

    return wait
