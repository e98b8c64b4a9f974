"""A coroutine that is begun at once ends at once, or goes on as a task would have."""

from __future__ import annotations

import asyncio

import pytest

from chat_streams.compat import eager


async def turns() -> None:
    """Let the loop go round until everybody did what they could."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_waits_for_nothing_ends_at_once() -> None:
    found: list[int] = []

    async def work() -> None:
        found.append(1)

    assert eager.begin(work()) is None
    assert found == [1]


async def test_what_waits_goes_on_in_a_task_and_has_its_outcome() -> None:
    async def work(future: asyncio.Future[int]) -> list[int]:
        await asyncio.sleep(0)
        return [await future, await future]

    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    rest = eager.begin(work(future))
    assert rest is not None
    task = asyncio.create_task(rest)
    await turns()
    assert not task.done()
    future.set_result(7)
    assert await task == [7, 7]


@pytest.mark.parametrize("waits", [False, True])
async def test_errors_come_to_who_waits_for_it(waits: bool) -> None:
    async def work() -> None:
        if waits:
            await asyncio.sleep(0)
        raise ValueError("broken")

    async def whole() -> None:
        if (rest := eager.begin(work())) is not None:
            await rest

    with pytest.raises(ValueError, match="broken"):
        await whole()


async def test_it_can_be_cancelled_and_cleans_up_and_catches_what_it_awaits() -> None:
    seen: list[str] = []

    async def work(future: asyncio.Future[None]) -> None:
        try:
            await future
        except KeyError:
            seen.append("caught")
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned")

    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    rest = eager.begin(work(future))
    assert rest is not None
    task = asyncio.create_task(rest)
    future.set_exception(KeyError())
    await turns()
    assert seen == ["caught"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["caught", "cleaned"]


async def test_a_limit_on_its_time_ends_what_it_waits_for_and_not_its_caller() -> None:
    async def work() -> str:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), 0.01)
        except TimeoutError:
            return "late"
        return "never"

    rest = eager.begin(work())
    assert rest is not None
    assert await rest == "late"
