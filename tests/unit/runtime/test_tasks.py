"""Tasks: one that ends by an error, or that is never to end, is heard of."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from chat_streams.model.errors import Interrupted
from chat_streams.runtime import tasks as module
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.tasks import close_all, endless, log_loop_error, run_endless, spawn, uncancelled


async def cancelled_from_within() -> None:
    raise asyncio.CancelledError


async def failing() -> None:
    await asyncio.sleep(0)
    raise ValueError("broken")


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_task_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="reading has ended"):
        await endless("reading", asyncio.sleep(0))


async def test_a_task_that_is_cancelled_from_within_is_an_error() -> None:
    async with asyncio.timeout(None):
        with pytest.raises(RuntimeError, match="reading was cancelled from within"):
            await asyncio.create_task(endless("reading", cancelled_from_within()))


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    task = asyncio.create_task(endless("reading", asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


@pytest.mark.parametrize(("work", "cause"), [(failing, ValueError), (cancelled_from_within, Interrupted)])
async def test_what_ends_a_task_is_told(work: Any, cause: type[Exception]) -> None:
    causes: list[BaseException] = []
    spawn("working", work(), causes.append)
    await turns()
    assert [type(error) for error in causes] == [cause]


async def test_a_task_that_is_cancelled_or_is_done_tells_nothing() -> None:
    causes: list[BaseException] = []
    task = spawn("waiting", asyncio.Event().wait(), causes.append)
    spawn("ending", asyncio.sleep(0), causes.append)
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled()
    assert causes == []


async def test_a_task_that_nobody_keeps_goes_on() -> None:
    causes: list[BaseException] = []

    async def wait() -> None:
        # Nothing but the task itself knows this future.
        await asyncio.get_running_loop().create_future()

    spawn("waiting", wait(), causes.append)
    await turns()
    gc.collect()
    assert "waiting" in {task.get_name() for task in asyncio.all_tasks()}
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "waiting")
    task.cancel()
    await turns()
    assert not module._running


async def test_endless_works_end_together_with_the_cause_of_the_first() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("wait")

    with pytest.raises(ValueError, match="broken"):
        await run_endless({"waiting": wait(), "failing": failing()})
    assert ended == ["wait"]


async def test_a_cancellation_from_within_is_an_error_and_ones_own_is_not() -> None:
    with pytest.raises(Interrupted):
        await uncancelled(cancelled_from_within())
    task = asyncio.create_task(uncancelled(asyncio.Event().wait()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_attempt_that_is_cancelled_from_within_is_made_again() -> None:
    attempts = 0

    async def attempt() -> str:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise asyncio.CancelledError
        return "done"

    assert await retry_forever("attempt", OSError, attempt) == "done"
    assert attempts == 2


async def test_an_exception_that_nobody_waits_for_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", structlog.get_logger())
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    with capture_logs() as lines:
        asyncio.get_running_loop().call_soon(json.loads, "{")
        task: asyncio.Task[None] | None = spawn("render", failing(), None)
        await turns()
        del task
        gc.collect()
    assert [(line["log_level"], line["error"].partition("(")[0]) for line in lines] == [
        ("error", "JSONDecodeError"),
        ("error", "ValueError"),
    ]
    assert "render" in lines[1]["where"]
    assert lines[1]["what"] == "Task exception was never retrieved"


async def test_what_does_not_close_in_time_keeps_nothing_else_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "log", structlog.get_logger())
    closed: list[str] = []

    async def close() -> None:
        closed.append("good")

    with capture_logs() as lines:
        await close_all(
            0.01,
            {
                "hanging": asyncio.Event().wait(),  # type: ignore[dict-item]
                "failing": failing(),
                "cancelled": cancelled_from_within(),
                "good": close(),
            },
        )
    assert closed == ["good"]
    assert sorted(line["what"] for line in lines) == ["cancelled", "failing", "hanging"]
