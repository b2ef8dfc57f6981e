"""A process that looks at another one of its user, which shows itself to root alone, as the audio worker does."""

import ctypes
import os
import signal
import sys
import time

import psutil

from benchmarks.system import Subject

PR_SET_DUMPABLE = 4
NOBODY = 65534


def look() -> None:
    """Writes of what it finds which is a megabyte and more, and whether files are open."""
    told, tell = os.pipe()
    hidden = os.fork()
    drop_rights()
    if not hidden:
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
        os.write(tell, b"hidden")
        time.sleep(600)
    try:
        os.read(told, 6)
        subject = Subject("tested", "", {"worker": [psutil.Process(hidden)], "here": [psutil.Process()]})
        subject.begin()
        held = {
            **subject.used().peak_mb,
            "resident": subject.resident_mb(),
            "proportional": subject.proportional_mb(),
        }
        sys.stdout.write(f"{[name for name in held if held[name] > 1]} {subject.descriptors() > 1}\n")
    finally:
        os.kill(hidden, signal.SIGKILL)


def drop_rights() -> None:
    """What root may look at is shown by nothing."""
    if not os.geteuid():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
