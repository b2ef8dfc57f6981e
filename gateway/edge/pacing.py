"""Gives turns when more is to be done than can be done at once."""

import asyncio
from collections.abc import Callable

__all__ = ["Pacing"]


class Pacing:
    """Begins only a few things in each round of the event loop.

    However much strangers ask or send at once, work that is under way goes on between them. Half of the turns
    go to whoever has waited longest, so that everybody gets one, and half to whoever needs least, so that
    small requests need not wait for large ones.
    """

    AT_ONCE = 8

    def __init__(self) -> None:
        # How much each of them needs, in the order in which they came.
        self._waiting: dict[Callable[[], None], int] = {}
        self._left = self.AT_ONCE
        self._resets = False

    async def wait_for_turn(self, need: int) -> None:
        """Waits for a turn; `need` is how much is to come, with this turn and all that follow."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def begin() -> None:
            if not turn.done():  # whoever waited may have given up in this very moment
                turn.set_result(None)

        self.take(begin, need)
        try:
            await turn
        finally:
            self._waiting.pop(begin, None)

    def take(self, begin: Callable[[], None], need: int) -> None:
        """Calls `begin`, now or when its turn comes."""
        if self._left and not self._waiting:
            self._left -= 1
            begin()
        else:
            self._waiting[begin] = need
        if not self._resets:
            self._resets = True
            asyncio.get_running_loop().call_soon(self._come_round)

    def _come_round(self) -> None:
        self._left = self.AT_ONCE
        while self._left and self._waiting:
            self._left -= 1
            waiting = self._waiting
            begin = min(waiting, key=waiting.__getitem__) if self._left % 2 else next(iter(waiting))
            del waiting[begin]
            begin()
        self._resets = self._left < self.AT_ONCE
        if self._resets:
            asyncio.get_running_loop().call_soon(self._come_round)
