"""The producer of an app: into which lane a write goes, and what a changelog's write that is given up does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from chat_streams.kafka.names import partition_for
from chat_streams.processing.transport import Producer


class Lanes:
    """A stand-in for the lanes: remembers the writes, and leaves it to the test to confirm them."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, int, bytes | None, bytes | None]] = []
        self.written: list[asyncio.Future[int]] = []
        self.headers: list[Sequence[Any] | None] = []

    def write(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: Callable[[], bytes | None],
        headers: Sequence[Any] | None = None,
    ) -> asyncio.Future[int]:
        self.writes.append((topic, partition, key, value()))
        self.headers.append(headers)
        self.written.append(asyncio.get_running_loop().create_future())
        return self.written[-1]


@pytest.fixture
def lanes() -> Lanes:
    return Lanes()


@pytest.fixture
async def producer(lanes: Lanes, monkeypatch: pytest.MonkeyPatch) -> Producer:
    found = Producer.__new__(Producer)
    found.__dict__.update(_lanes=lanes, _client=SimpleNamespace(partitions_of_topic=partitions))
    return found


async def partitions(topic: str) -> set[int]:
    return set(range(12))


async def test_the_headers_that_faust_names_are_written(producer: Producer, lanes: Lanes) -> None:
    # As ``faust.Topic.publish_message`` calls it.
    await producer.send("t", b"k", b"v", partition=1, timestamp=None, headers={"name": b"text"})
    assert lanes.headers == [[("name", b"text")]]


async def test_without_a_partition_the_key_decides(producer: Producer, lanes: Lanes) -> None:
    await producer.send("dead_letters", b"alice", b"x", None, None, None)
    await producer.send("dead_letters", b"alice", b"y", 3, None, None)
    assert lanes.writes == [
        ("dead_letters", partition_for(b"alice", 12), b"alice", b"x"),
        ("dead_letters", 3, b"alice", b"y"),
    ]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_change_that_its_changelog_does_not_get_ends_the_worker(
    producer: Producer, lanes: Lanes, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    crashes: list[BaseException] = []

    async def crash(error: BaseException) -> None:
        crashes.append(error)

    monkeypatch.setattr(Producer, "should_stop", False)
    monkeypatch.setattr(producer, "crash", crash, raising=False)
    monkeypatch.setattr(producer, "add_future", asyncio.ensure_future, raising=False)
    fut: Any = asyncio.get_running_loop().create_future()
    channel = SimpleNamespace(get_topic_name=lambda: "changelog")
    fut.message = SimpleNamespace(channel=channel, partition=2, key=b"k", value=None)
    producer.send_soon(fut)
    assert lanes.writes == [("changelog", 2, b"k", None)], "a row that was deleted has no value"
    if fails:
        lanes.written[0].set_exception(ValueError("too large"))
    else:
        lanes.written[0].set_result(7)
    for _ in range(3):
        await asyncio.sleep(0)
    assert (len(crashes), fut.done()) == ((1, False) if fails else (0, True))
