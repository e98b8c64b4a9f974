"""Opening a slot's partition of ``outgoing_messages``."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from chat_streams.runtime.settings import Settings
from gateway import slot_consumer as module
from gateway.slot_consumer import SlotConsumer


@pytest.mark.parametrize("fails", [False, True])
async def test_a_consumer_that_is_starting_has_started_before_it_is_stopped(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    story: list[str] = []
    connecting, connected = asyncio.Event(), asyncio.Event()

    class Consumer:
        def __init__(self, **_: Any) -> None:
            pass

        async def start(self) -> None:
            connecting.set()
            await connected.wait()
            story.append("started")
            if fails:
                raise ConnectionError

        async def stop(self) -> None:
            story.append("stopped")

    monkeypatch.setattr(module, "AIOKafkaConsumer", Consumer)
    opening = asyncio.create_task(SlotConsumer(Settings(), lambda *_: None).open(3))
    await connecting.wait()
    opening.cancel()
    await asyncio.sleep(0)
    connected.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert story == ["started", "stopped"]
