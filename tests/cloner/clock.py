import time
from collections.abc import Sequence
from typing import Any


class Clock:
    """Time that a test moves: the real one, and as many seconds as it is `ahead`."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._passed = 0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def pass_pauses(self, lines: Sequence[dict[str, Any]]) -> None:
        """Lets every pause be over that these lines of a log tell; of a list that grows, each line once."""
        told, self._passed = lines[self._passed :], len(lines)
        self.ahead += sum(line.get("next_try_seconds", 0.0) for line in told)


class StoppedClock:
    """Time that passes only where a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
