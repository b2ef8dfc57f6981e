"""What tests share: where it is, and that it does what they count on."""

import gc
import re
import sys
import threading
from pathlib import Path
from types import FrameType

from tests.kit import surroundings
from tests.kit.garbage import left_in_cycles

IMPORTED = re.compile(r"^\s*(?:from|import) tests\b.*\btest_\w+", re.MULTILINE)


def test_no_test_module_is_imported() -> None:
    """What several test modules use stands in `tests/kit/`, or in a module of their folder."""
    modules = [*Path(__file__).parent.rglob("*.py")]

    assert {} == {
        str(module): found for module in modules if (found := IMPORTED.findall(module.read_text("utf-8")))
    }
    assert len(modules) > 100


class Kept:
    """Is freed by the garbage collector alone, as is the call that made it."""

    def __init__(self, freed: threading.Event, go_on: threading.Event) -> None:
        self._itself = self
        self._made_by: FrameType = sys._getframe(1)
        self._freed = freed
        self._go_on = go_on

    def __del__(self) -> None:
        self._freed.set()
        self._go_on.wait(30)


def test_garbage_of_before() -> None:
    """What another thread is about to collect when a block begins is not told as left by the block."""
    freed, go_on = threading.Event(), threading.Event()

    def leave_behind() -> None:
        Kept(freed, go_on)

    gc.disable()  # nobody else may collect it; the block enables that again
    leave_behind()
    collecting = threading.Thread(target=gc.collect)
    collecting.start()
    freed.wait(30)
    threading.Timer(0.1, go_on.set).start()
    with left_in_cycles("tests") as left:
        collecting.join(30)

    assert [] == left


def test_garbage_of_a_block() -> None:
    """What only the garbage collector frees of a block's calls is told."""
    done = threading.Event()
    done.set()

    def leave_behind() -> None:
        Kept(done, done)

    with left_in_cycles("tests") as left:
        leave_behind()

    assert ["tests/test_kit.py: leave_behind"] == left


def test_surroundings() -> None:
    """What somebody has set for a cloner of their own is not what tests are run with."""
    settings = (
        "DATABASE_URL",
        "ELEVENLABS_API_KEY_FILE",
        "OTEL_SDK_DISABLED",
        "PGHOST",
        "FORCE_COLOR",
        "LANGUAGE",
    )
    proxy = {"HTTP_PROXY": "http://proxy.example", "no_proxy": "internal.example"}
    environ = {**dict.fromkeys(settings, "theirs"), **proxy, "LC_ALL": "nowhere", "HOME": "/home/precall"}

    surroundings.forget(environ)

    assert environ == {
        "HTTP_PROXY": "http://proxy.example",
        "NO_PROXY": "127.0.0.1,localhost,::1",
        "no_proxy": "internal.example,127.0.0.1,localhost,::1",
        "LC_ALL": "C.UTF-8" if surroundings.is_installed("C.UTF-8") else "C",
        "HOME": "/home/precall",
    }
