"""The sender of pages: it reads no more of them than Kafka takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from types import SimpleNamespace
from typing import Any

from chat_streams.model.position import ORIGIN, Position
from chat_streams.processing.page_sender import READ_AT_ONCE, PageSender, Wanted
from chat_streams.runtime.settings import Settings
from tables.inbox import InboxPage

PAGE = 512 * 1024
BODY = b"x" * PAGE
TOP = Position.of(1, 1, 0)
MOST = 16 * 1024 * 1024


class Engines:
    """An inbox full of pages, and a Kafka that takes nothing until it is told to."""

    def __init__(self) -> None:
        self.pages = 0
        self.written: list[asyncio.Future[int]] = []

    async def read(self, requests: list[Any]) -> list[InboxPage]:
        self.pages += len(requests)
        return [InboxPage(ORIGIN, TOP, TOP, 1, BODY, missed=False) for _ in requests]

    def produce(self, *_: Any) -> asyncio.Future[int]:
        self.written.append(asyncio.get_running_loop().create_future())
        return self.written[-1]

    def confirm(self) -> None:
        for written in self.written:
            if not written.done():
                written.set_result(1)


async def test_pages_are_not_read_while_kafka_takes_none() -> None:
    engines = Engines()
    app: Any = SimpleNamespace(settings=Settings(), traces=None, produce=engines.produce)
    sender = PageSender(app, engines, MOST)  # type: ignore[arg-type]
    wanted = [Wanted("bob", "phone", bytes([n]), n % 3, 1, 2, ORIGIN, 100, PAGE, 0) for n in range(200)]
    # Two agents, each with a batch.
    batches = [asyncio.create_task(sender.send(wanted)) for _ in range(2)]
    for _ in range(100):
        await asyncio.sleep(0)
    assert MOST <= sender.room.held <= MOST + 2 * READ_AT_ONCE
    assert engines.pages < 400
    # A write that was given up makes room, too.
    engines.written[0].set_exception(RuntimeError("given up"))
    async with asyncio.timeout(10):
        while engines.pages < 400:
            engines.confirm()
            await asyncio.sleep(0)
            assert sender.room.held <= MOST + 2 * READ_AT_ONCE
        effects: list[Awaitable[Any] | None] = [await batch for batch in batches]
    engines.confirm()
    outcomes = await asyncio.gather(*(effect for effect in effects if effect is not None), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(RuntimeError) == 1
    assert sender.room.held == 0
