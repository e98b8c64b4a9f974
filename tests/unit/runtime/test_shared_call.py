from __future__ import annotations

import asyncio

import pytest

from chat_streams.runtime.shared_call import SharedCall


class Engine:
    """An engine that counts the questions, and answers when told."""

    def __init__(self) -> None:
        self.asked = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def ask(self) -> int:
        self.asked += 1
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return self.asked


async def test_all_who_ask_at_once_share_one_call() -> None:
    engine = Engine()
    shared = SharedCall(engine.ask, 3600)
    asking = [asyncio.create_task(shared.result()) for _ in range(1_000)]
    await asyncio.sleep(0)
    asking[0].cancel()
    engine.go.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [1] * 999
    assert await shared.result() == 1


async def test_a_result_that_is_old_is_asked_for_again() -> None:
    engine = Engine()
    engine.go.set()
    shared = SharedCall(engine.ask, 0)
    assert [await shared.result(), await shared.result()] == [1, 2]


async def test_an_error_is_shared_and_forgotten_like_a_result() -> None:
    engine = Engine()
    engine.go.set()
    engine.error = RuntimeError("away")
    shared = SharedCall(engine.ask, 0)
    found = await asyncio.gather(shared.result(), shared.result(), return_exceptions=True)
    assert [str(error) for error in found] == ["away", "away"]
    assert engine.asked == 1
    engine.error = None
    assert await shared.result() == 2


async def test_a_stop_cancels_what_is_under_way() -> None:
    engine = Engine()
    shared = SharedCall(engine.ask, 0)
    shared.stop()
    asking = asyncio.create_task(shared.result())
    await asyncio.sleep(0)
    shared.stop()
    with pytest.raises(asyncio.CancelledError):
        await asking
