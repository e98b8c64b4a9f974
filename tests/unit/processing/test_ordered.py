"""The app around a processor: the size of a batch, dead letters, and the error that no record explains."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from chat_streams.model.errors import UnknownVersion
from chat_streams.model.records import DEAD_LETTERS, SESSIONS, VERSION
from chat_streams.model.redrive import Redrive
from chat_streams.processing.offsets import Checkpoint, Progress, Start
from chat_streams.processing.ordered import BATCH_BYTES, OrderedApp
from chat_streams.runtime.statistics import Statistics

TP = ("t", 0)


def message(offset: int, value: bytes = b"x") -> Any:
    return SimpleNamespace(
        tp=TP,
        topic="t",
        partition=0,
        offset=offset,
        key=b"k",
        value=value,
        headers=(),
        generation_id=1,
        timestamp=1.234,
    )


class Stream:
    """A stream with records in its queue."""

    def __init__(self, messages: list[Any]) -> None:
        self.queue: Any = asyncio.Queue()
        for each in messages:
            self.queue.put_nowait(SimpleNamespace(message=each))
        self.channel = SimpleNamespace(queue=self.queue, topics=["t"])

    async def events(self) -> AsyncIterator[Any]:
        while True:
            yield await self.queue.get()


@pytest.fixture
def app() -> Any:
    found = OrderedApp.__new__(OrderedApp)
    letters: list[bytes] = []
    taken: list[tuple[str, int, int]] = []
    crashes: list[BaseException] = []

    async def produce(topic: str, partition: int | None, key: bytes | None, value: Callable[[], bytes]) -> None:
        letters.append(value())

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    async def partition_of(topic: str, key: bytes | None) -> int:
        return 3

    found.__dict__.update(
        progress=Progress(60),
        statistics=Statistics("test"),
        produce=produce,
        crash=crash,
        letters=letters,
        taken=taken,
        crashes=crashes,
        _dead_letters="dead_letters",
        _idle_since={},
        _conf=SimpleNamespace(id="messaging"),
        _producer=SimpleNamespace(partition_of=partition_of),
        _consumer=SimpleNamespace(took=lambda *told: taken.append(told), assignment=set, go_on=lambda tp: None),
    )
    return found


async def batches(app: Any, stream: Stream, most: int) -> list[list[int]]:
    found: list[list[int]] = []
    taking = app._batches(stream, most)
    while not stream.queue.empty():
        found.append([each.offset for each in await anext(taking)])
    return found


async def test_a_batch_is_bounded_in_records_and_bytes(app: Any) -> None:
    assert await batches(app, Stream([message(n) for n in range(3)]), 1) == [[0], [1], [2]]
    assert await batches(app, Stream([message(n) for n in range(5)]), 2) == [[0, 1], [2, 3], [4]]
    large = bytes(BATCH_BYTES)
    assert await batches(app, Stream([message(0), message(1, large), message(2)]), 200) == [[0, 1], [2]]
    assert sum(told[1] for told in app.taken) == 11
    assert app.taken[-2:] == [("t", 2, 1 + BATCH_BYTES), ("t", 1, 1)]


async def test_a_stream_that_faust_ends_is_no_error(app: Any) -> None:
    stream = Stream([])
    stream.queue = ThrowableQueue(flow_control=FlowControlEvent())
    stream.channel.queue = stream.queue
    await stream.queue.throw(StopAsyncIteration())
    assert [batch async for batch in app._batches(stream, 200)] == []


async def test_a_dead_letter_holds_the_record_and_why(app: Any) -> None:
    await app.bury(message(7, b"body"), ValueError("broken"))
    letter: Any = DEAD_LETTERS.decode(app.letters[0])
    assert (letter.app, letter.topic, letter.partition, letter.offset) == ("messaging", "t", 0, 7)
    assert (letter.key, letter.value, letter.reason) == (b"k", b"body", "ValueError: broken")
    assert "ValueError: broken" in letter.traceback
    assert letter.logged_at == 1_234
    # Redriven, and failed again: its messages keep the time of the first record.
    again = message(9)
    again.headers = Redrive(frozenset({"messaging"}), 5, None, 1_000).headers()
    await app.bury(again, ValueError("broken"))
    second: Any = DEAD_LETTERS.decode(app.letters[1])
    assert second.logged_at == 1_000


async def test_a_record_of_a_newer_program_ends_the_worker_and_is_not_committed(app: Any) -> None:
    app.progress.start(TP, Start(0, Checkpoint()), 0.0)
    newer = bytearray(SESSIONS.encode(()))
    newer[2] = VERSION + 1
    with pytest.raises(UnknownVersion):
        await app.process(cast(Any, Stream([message(0, bytes(newer)), message(1)])), SESSIONS, None)
    assert [type(error) for error in app.crashes] == [UnknownVersion]
    assert app.progress.committable(TP) == 0
