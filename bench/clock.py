"""Ticks finer than the event loop's milliseconds, from the kernel's timerfd: messages leave when they are due."""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import AsyncIterator
from types import TracebackType

CLOCK_MONOTONIC = 1
NONBLOCK = os.O_NONBLOCK | os.O_CLOEXEC
SHORTEST = 0.0002
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


class Ticks:
    """An iterator that wakes its task each ``interval`` seconds (0.2 ms at least); missed ticks count as one.

    ``began`` is the time by ``time.perf_counter``, at or just before the start of the ticks: tick n never comes before
    ``began + n * interval``.
    """

    def __init__(self, interval: float) -> None:
        self._interval = max(interval, SHORTEST)

    def __enter__(self) -> Ticks:
        self._fd = _libc.timerfd_create(CLOCK_MONOTONIC, NONBLOCK)
        seconds, ns = divmod(int(self._interval * 1e9), 10**9)
        spec = _Spec(seconds, ns, seconds, ns)
        self.began = time.perf_counter()
        if self._fd < 0 or _libc.timerfd_settime(self._fd, 0, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd")
        self._ticked = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._fd, self._read)
        return self

    def _read(self) -> None:
        os.read(self._fd, 8)
        self._ticked.set()

    async def __aiter__(self) -> AsyncIterator[None]:
        while True:
            await self._ticked.wait()
            self._ticked.clear()
            yield

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
