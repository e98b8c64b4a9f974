"""Running a coroutine without a task up to where it waits for something: most that are started wait for nothing.

As the eager tasks of Python 3.12 do, but for ``current_task()``, which is the caller's until it first waits.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Coroutine, Generator
from typing import Any, Final, TypeVar, cast

T = TypeVar("T")

IS_SAFE: Final = sys.version_info < (3, 12)
"""From 3.12 on ``asyncio.wait_for`` keeps to the task it begins in, as ``asyncio.timeout`` does: that of the caller."""


def begin(coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T] | None:
    """Run until it ends, and return ``None``, or until it waits, and return what goes on with it.

    Raises what it raises. Until it first waits, ``current_task()`` is the caller's: it must not enter
    ``asyncio.timeout`` by then, nor, from Python 3.12 on, ``asyncio.wait_for``.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _go_on(coroutine, waits_for)


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
