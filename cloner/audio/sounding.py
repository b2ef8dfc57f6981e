"""Measures how much of a recording is sound, while it is decoded."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

from cloner.audio.reply import SOUND_DBFS

__all__ = ["Sounding"]

# How the bytes of each sample format become numbers: numpy's type, and the number of full scale.
SCALES = {
    "u8": ("u1", 2.0**7),
    "s16": ("i2", 2.0**15),
    "s32": ("i4", 2.0**31),
    "s64": ("i8", 2.0**63),
    "flt": ("f4", 1.0),
    "dbl": ("f8", 1.0),
}

WINDOW_SECONDS = 0.02
GATHERED = 1 << 16  # numbers gathered before numpy looks at them: once per frame costs more
LOUD = 10 ** (SOUND_DBFS / 10)
LOUDEST = 8.0  # full scales; a float or lossy format may say anything
LARGE = 2.0**40  # numbers whose squares a float of 32 bits cannot hold
OFFSET = 0.1  # of full scale
DRIFT = 2  # an offset may drift within a window along a curve of this degree


class Sounding:
    """Adds up the windows in which any channel, without its offset, is louder than SOUND_DBFS.

    An offset may drift: a straight line or a slow curve within a window is no sound. Soon after `enough`
    seconds are found, the rest is not measured.
    """

    def __init__(self, enough: float) -> None:
        self.seconds = 0.0
        self._enough = enough
        self._sort: tuple[str, int, int] | None = None
        self._gathered: NDArray[Any] = np.empty((0, 0), "u1")
        self._rows: list[NDArray[Any]] = []
        self._count = 0
        self._window = self._rate = 1
        self._full = 1.0
        self._curves: NDArray[np.float32] = np.empty((0, 0), "f4")

    def hear(self, frame: AudioFrame) -> None:
        """Counts a frame. One of another rate, format or number of channels begins a new window."""
        if self.seconds >= self._enough:
            return
        channels = frame.layout.nb_channels
        sort = (frame.format.name, channels, frame.sample_rate)
        if sort != self._sort:
            self.finish()
            self._begin(*sort)
        count, after = frame.samples, self._count + frame.samples
        if after > self._gathered.shape[1]:
            self._look()
            after = self._count + count
            if after > self._gathered.shape[1]:
                self._make_room(after)
        dtype = self._gathered.dtype
        if channels == 1 or frame.format.is_planar:
            # PyAV 18 lists a plane too many, which points nowhere, where all eight are used.
            for row, plane in zip(self._rows, frame.planes, strict=False):
                row[self._count : after] = np.frombuffer(memoryview(plane), dtype, count)
        else:
            whole = np.frombuffer(memoryview(frame.planes[0]), dtype, count * channels)
            self._gathered[:, self._count : after] = whole.reshape(count, channels).T
        self._count = after

    def finish(self) -> None:
        """Counts what is left; less than half a window is ignored."""
        if self.seconds >= self._enough:
            return
        self._look()
        if self._count > self._window // 2:
            self._measure(self._gathered[:, : self._count], self._count)
        self._count = 0

    def _begin(self, name: str, channels: int, rate: int) -> None:
        dtype, self._full = SCALES[name.removesuffix("p")]
        self._sort = (name, channels, rate)
        self._rate = rate
        self._window = round(rate * WINDOW_SECONDS)
        windows = max(1, GATHERED // channels // self._window)
        self._gathered = np.empty((channels, 0), dtype)
        self._make_room(windows * self._window)
        self._curves = _curves(self._window)

    def _make_room(self, numbers: int) -> None:
        """Makes room for so many more numbers of each channel."""
        room = np.empty((len(self._gathered), numbers), self._gathered.dtype)
        room[:, : self._count] = self._gathered[:, : self._count]
        self._gathered, self._rows = room, list(room)

    def _look(self) -> None:
        whole = self._count - self._count % self._window
        if not whole:
            return
        self._measure(self._gathered[:, :whole], self._window)
        self._count -= whole
        self._gathered[:, : self._count] = self._gathered[:, whole : whole + self._count].copy()

    def _measure(self, sound: NDArray[Any], window: int) -> None:
        channels = len(sound)
        curves = self._curves if window == self._window else _curves(window)
        # The noise of a damaged packet may be no number, or one that has no square.
        with np.errstate(all="ignore"):
            numbers = sound.astype("f4") if self._full < LARGE else (sound / self._full).astype("f4")
            full = self._full if self._full < LARGE else 1.0
            energy = _energy(numbers.reshape(channels, -1, window), curves, full)
            if not math.isfinite(float(energy.sum())):
                numbers[~np.isfinite(numbers)] = 0
                np.clip(numbers, -LOUDEST, LOUDEST, out=numbers)
                energy = _energy(numbers.reshape(channels, -1, window), curves, full)
        sounding = int((energy > LOUD * full**2 * window).any(axis=0).sum())
        self.seconds += sounding * window / self._rate


def _energy(windows: NDArray[np.float32], curves: NDArray[np.float32], full: float) -> NDArray[np.float32]:
    """The sum of squares of every window of every channel, without its part along the curves."""
    along = windows @ curves
    if float(np.abs(along).max()) > OFFSET * full * math.sqrt(windows.shape[2]):
        # So large an offset leaves too little of the precision of the squares.
        windows = windows - windows[:, :, :1]
        along = windows @ curves
    energy: NDArray[np.float32] = np.vecdot(windows, windows) - np.vecdot(along, along)
    return energy


@lru_cache(maxsize=32)
def _curves(window: int) -> NDArray[np.float32]:
    """An orthonormal basis of the curves of the lowest degrees over so many samples."""
    degrees = min(DRIFT, window - 1)
    powers = np.vander(np.linspace(-1, 1, window), degrees + 1)
    return np.linalg.qr(powers)[0].astype("f4")
