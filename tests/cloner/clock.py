import time


class Clock:
    """Time that a test moves: the real one, and as many seconds as it is `ahead`."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class StoppedClock:
    """Time that passes only where a test says so."""

    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
