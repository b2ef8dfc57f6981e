import time
from collections.abc import Callable, Sequence
from typing import Any


class Clock:
    """Time that a test moves: the real one, and as many seconds as it is `ahead`."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._passed = 0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def passing_pauses(
        self, lines: Sequence[dict[str, Any]], holds: Callable[[], object]
    ) -> Callable[[], object]:
        """Looks whether something holds, each time after every pause that a growing log tells is over."""

        def look() -> object:
            told, self._passed = lines[self._passed :], len(lines)
            self.ahead += sum(line.get("next_try_seconds", 0.0) for line in told)
            return holds()

        return look


class StoppedClock:
    """Time that passes only where a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
