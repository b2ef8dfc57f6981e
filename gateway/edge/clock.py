"""Ends a sender's time only after everything that arrived in time was read.

A process that stood still, on a busy machine or in a container that was held, finds its timers due before it
has looked at its sockets. It was then not the sender who was slow.
"""

import asyncio
from collections.abc import Callable

__all__ = ["Clock", "end"]

# libuv polls all sockets between two timers that are not due at once, so any pause of a millisecond or more
# will do.
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

        If `when` has passed and the last look at the sockets is under way, that look is not restarted.
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
