"""A process that looks at another one of its user, which shows itself to root alone, as the audio worker does."""

import ctypes
import os
import sys

import psutil

from benchmarks.system import Subject

PR_SET_DUMPABLE = 4
NOBODY = 65534


def look() -> None:
    """Writes of what it finds which is a megabyte and more, and whether files are open."""
    told, tell = os.pipe()
    ended, lives = os.pipe()
    hidden = os.fork()
    drop_rights()
    if not hidden:
        os.close(lives)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0)
        os.write(tell, b"hidden")
        os.read(ended, 1)  # until the other one has ended
        os._exit(0)
    os.read(told, 6)
    subject = Subject("tested", "", {"worker": [psutil.Process(hidden)], "here": [psutil.Process()]})
    subject.begin()
    held = {
        **subject.used().peak_mb,
        "resident": subject.resident_mb(),
        "proportional": subject.proportional_mb(),
    }
    sys.stdout.write(f"{[name for name in held if held[name] > 1]} {subject.descriptors() > 1}\n")


def drop_rights() -> None:
    """What root may look at is shown by nothing."""
    if not os.geteuid():
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
