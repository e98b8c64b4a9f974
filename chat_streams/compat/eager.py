"""Running a coroutine without a task up to where it waits for something: most that are started wait for nothing.

By an eager task where there are some, from Python 3.12 on; before, by hand.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar, cast

T = TypeVar("T")


def begin(coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T] | None:
    """Run until it ends, and return ``None``, or until it waits, and return what goes on with it.

    Raises what it raises. Before Python 3.12 ``current_task()`` is the caller's until it first waits: it must not enter
    ``asyncio.timeout`` by then.
    """
    if sys.version_info >= (3, 12):
        # There ``asyncio.wait_for`` keeps to the task it begins in, too, which has to be its own.
        task = asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)
        if not task.done():
            return _finish(task)
        task.result()
        return None
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _go_on(coroutine, waits_for)


async def _finish(task: asyncio.Task[T]) -> T:
    return await task


async def _go_on(begun: Coroutine[Any, Any, T], waits_for: Any) -> T:
    try:
        while True:
            try:
                answer = await _yielded(waits_for)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
                waits_for = begun.throw(error)
            else:
                waits_for = begun.send(answer)
    except StopIteration as done:
        return cast("T", done.value)


@types.coroutine
def _yielded(waits_for: Any) -> Generator[Any, Any, Any]:
    return (yield waits_for)
