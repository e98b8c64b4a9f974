"""Work that lasts as long as its service: it ends with it, or crashes it."""

from __future__ import annotations

import asyncio

import faust
import mode
import pytest

from chat_streams.model.errors import Interrupted
from chat_streams.processing.lasting import lasting, run_lasting


class Worker(mode.Service):
    """A service with one task, which does what the test says."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    @lasting
    async def work(self) -> None:
        if self.kind == "cancelled":
            raise asyncio.CancelledError
        if self.kind == "fails":
            raise ValueError("broken")
        if self.kind == "waits":
            await asyncio.Event().wait()
        while self.kind == "looks" and not self.should_stop:
            await self.sleep(0.001)


@pytest.mark.parametrize(("kind", "cause"), [("cancelled", Interrupted), ("fails", ValueError), ("ends", RuntimeError)])
async def test_work_that_ends_by_itself_crashes_its_service(kind: str, cause: type[Exception]) -> None:
    worker = Worker(kind)
    await worker.start()
    async with asyncio.timeout(10):
        while not worker.crashed:
            await asyncio.sleep(0)
    assert type(worker.crash_reason) is cause
    await worker.stop()


@pytest.mark.parametrize("kind", ["waits", "looks"])
async def test_work_that_ends_with_its_service_crashes_nothing(kind: str) -> None:
    worker = Worker(kind)
    await worker.start()
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await worker.stop()
    assert not worker.crashed


async def test_a_function_of_an_app_is_work_that_lasts() -> None:
    app = faust.App("app", autodiscover=False)

    async def watch() -> None:
        """Look at something, once only."""

    run_lasting(app, watch)
    (work,) = app._app_tasks
    with pytest.raises(RuntimeError, match="watch has ended"):
        await work()
