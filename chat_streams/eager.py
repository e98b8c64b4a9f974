"""Running a coroutine without a task up to where it waits for something: most that we start wait for nothing.

Python 3.12's eager tasks do the same; a task and its round through the loop cost some microseconds each.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any, TypeVar, cast

T = TypeVar("T")


def begin(coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T] | None:
    """Run until it ends, and return ``None``, or waits, and return what goes on with it.

    Raises what it raises. Until it first waits it runs in the task of the caller, which must not matter to it: no
    ``asyncio.timeout`` may be begun by then.
    """
    try:
        waits_for = coroutine.send(None)
    except StopIteration:
        return None
    return _go_on(coroutine, waits_for)


async def _go_on(begun: Coroutine[Any, Any, T], waits_for: Any) -> T:
    while True:
        try:
            answer = await _yielded(waits_for)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
            go_on = partial(begun.throw, error)
        else:
            go_on = partial(begun.send, answer)
        try:
            waits_for = go_on()
        except StopIteration as done:
            return cast("T", done.value)


@types.coroutine
def _yielded(waits_for: Any) -> Generator[Any, Any, Any]:
    return (yield waits_for)
