"""A call that is made once for all who want its result within a time, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from chat_streams.runtime.tasks import spawn

T = TypeVar("T")


class SharedCall(Generic[T]):
    """A call whose result, or exception, is kept for ``keep_s`` from its begin; who asks meanwhile shares it."""

    def __init__(self, call: Callable[[], Coroutine[Any, Any, T]], keep_s: float) -> None:
        self._call = call
        self._keep_s = keep_s
        self._began = 0.0
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """Return the result of a call that is under way or not too old, else of a new one."""
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._began >= self._keep_s):
            self._began, self._task = now, spawn("a shared call", self._call(), None)
        # One who goes away must not cancel it for the others.
        return await asyncio.shield(self._task)

    def stop(self) -> None:
        """Cancel the call that is under way, if there is one."""
        if self._task is not None:
            self._task.cancel()
