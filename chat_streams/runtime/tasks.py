"""Tasks that are never to end: one that does, whatever the way, is an error that somebody hears of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, NoReturn


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


def raise_if_cancelled(error: BaseException) -> None:
    """Raise ``error`` if it is the cancellation of this task; one of what it awaited is an error like any other."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
