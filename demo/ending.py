"""Ends a program that starts others in order when it is stopped: once, and without a complaint."""

import signal
from types import FrameType
from typing import Never

__all__ = ["end_in_order"]

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_in_order() -> None:
    """From now on Ctrl-C, SIGTERM and a closed terminal leave every `with` block, as an exit does.

    The exit status is what a shell gives a process that a signal ended. Call it from the main thread.
    """
    for number in ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> Never:
    # Further signals must not disturb what is being stopped.
    for each in ENDINGS:
        signal.signal(each, signal.SIG_IGN)
    # No exception of ours: asyncio lets only this one and KeyboardInterrupt through.
    raise SystemExit(128 + number)
