"""The tasks of a process: each is named and somebody hears of the error that ends it, whatever the way it ended.

Nothing else makes tasks (``tests/unit/test_tasks_are_watched.py``): one that nobody awaits ends unnoticed, and what it
did is not done any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, NoReturn, TypeVar

import structlog

from chat_streams.model.errors import Interrupted

log = structlog.get_logger()

T = TypeVar("T")

OnFailure = Callable[[BaseException], object]

# The event loop keeps weak references alone.
_running: Final[set[asyncio.Task[Any]]] = set()


def spawn(name: str, work: Coroutine[Any, Any, T], on_failure: OnFailure | None) -> asyncio.Task[T]:
    """Run work in a task of its own.

    Args:
        name: Name of the task, for the log.
        work: What to run.
        on_failure: Called with the exception that ended the work. It is called for a cancellation, too, if that came
            out of what the work awaited. ``None`` where the caller keeps the task and awaits it: the exception of one
            that is not awaited after all is logged (``log_loop_error``).
    """
    task = asyncio.create_task(work, name=name)
    if on_failure is not None:
        _running.add(task)
        task.add_done_callback(partial(_on_done, on_failure))
    return task


def _on_done(on_failure: OnFailure, task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    if task.cancelled():
        if not task.cancelling():
            on_failure(Interrupted(f"{task.get_name()} was cancelled from within"))
    elif (error := task.exception()) is not None:
        on_failure(error)


async def run_endless(works: Mapping[str, Awaitable[Any]]) -> NoReturn:
    """Run works side by side that go on until this task is cancelled, by their names; raises what ends one of them."""
    try:
        async with asyncio.TaskGroup() as group:
            for name, work in works.items():
                group.create_task(endless(name, work), name=name)
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) > 1:
            raise
        raise errors.exceptions[0] from None
    raise AssertionError("each of the tasks is endless")


async def endless(name: str, work: Awaitable[Any]) -> NoReturn:
    """Await work that goes on until this task is cancelled; raises ``RuntimeError`` where it ends by itself.

    Also where it is cancelled from within: aiokafka's ``stop`` can end by a ``CancelledError`` that nobody asked for,
    and a task group takes such a task for one that has done its work.
    """
    try:
        await work
    except asyncio.CancelledError as error:
        raise_if_cancelled(error)
        raise RuntimeError(f"{name} was cancelled from within") from error
    raise RuntimeError(f"{name} has ended")


async def uncancelled(work: Awaitable[T], name: str = "what was awaited") -> T:
    """Await work; raises ``Interrupted`` where it is cancelled from within, and this task is not."""
    try:
        return await work
    except asyncio.CancelledError as error:
        raise_if_cancelled(error)
        raise Interrupted(f"{name} was cancelled from within") from error


def raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` if it is the cancellation of this task; one of what it awaited is an error like any other."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


async def close_all(seconds: float, closing: Mapping[str, Awaitable[None]]) -> None:
    """Close things side by side, each in so many seconds; what fails or takes longer is logged, and left."""

    async def close(name: str, work: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(seconds):
                await work
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - nothing may keep the others from closing
            raise_if_cancelled(error)
            log.warning("not closed in order", what=name, error=repr(error))

    await asyncio.gather(*(close(name, work) for name, work in closing.items()))


def log_loop_error(loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Log an exception that nobody waits for: of a callback, a timer, or a library's task.

    This is an event loop's exception handler; asyncio's own names no cause that a search for ``error`` would find.
    """
    error = context.get("exception")
    where = context.get("task") or context.get("future") or context.get("handle")
    log.error(
        "an exception that nobody waits for",
        what=context.get("message"),
        where=repr(where)[:300],
        error=repr(error),
        exc_info=error,
    )
