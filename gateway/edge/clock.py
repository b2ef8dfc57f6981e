"""The end of the time that a sender is given: never before what arrived in time was read.

A process that stood still, on a busy machine or in a container that was held, finds its timers due before it
has looked at its sockets. It was then not the sender who was slow.
"""

import asyncio
from collections.abc import Callable

__all__ = ["Clock", "end"]

# libuv looks at all sockets between two timers, however short the time between them is, unless it is none.
LOOK_SECONDS = 0.05


class Clock:
    """Calls a function when a time is over and what had arrived by then was read, unless it is stopped."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None
        self._looking = False

    @property
    def runs(self) -> bool:
        """Whether it is set, and has not rung."""
        return self._handle is not None

    def set(self, when: float, ring: Callable[[], object]) -> None:
        """Calls `ring` soon after `when`, in the running loop's time.

        If the last look has begun, a time that is already over does not begin it again.
        """
        if self._looking and when <= asyncio.get_running_loop().time():
            return
        self.stop()
        self._handle = asyncio.get_running_loop().call_at(when, self._look, ring)

    def stop(self) -> None:
        """Calls nothing."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._looking = False

    def _look(self, ring: Callable[[], object]) -> None:
        self._looking = True
        self._handle = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._over, ring)

    def _over(self, ring: Callable[[], object]) -> None:
        self.stop()
        ring()


def end(timeout: asyncio.Timeout) -> None:
    """Ends the block of a timeout now."""
    if not timeout.expired():
        timeout.reschedule(asyncio.get_running_loop().time())
