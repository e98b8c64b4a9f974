"""Tasks that are never to end."""

from __future__ import annotations

import asyncio

import pytest

from chat_streams.runtime.tasks import endless


async def test_a_task_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="reading has ended"):
        await endless("reading", asyncio.sleep(0))


async def test_a_task_that_is_cancelled_from_within_is_an_error() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    async with asyncio.timeout(None):
        with pytest.raises(RuntimeError, match="reading was cancelled from within"):
            await asyncio.create_task(endless("reading", work()))


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    task = asyncio.create_task(endless("reading", asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
