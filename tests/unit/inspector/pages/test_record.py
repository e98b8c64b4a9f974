"""The page of a record: an address that names nothing is the asker's error, not Kafka's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.pages import record
from chat_streams.inspector.site import NotFound
from chat_streams.kafka.log_reader import Span
from chat_streams.model.errors import KafkaUnavailable, NoSuchPartition


class Reader:
    """A topic with one partition that holds the offsets 3 and 4, both compacted away."""

    def __init__(self, _: Any) -> None:
        pass

    async def __aenter__(self) -> Reader:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def spans(self, topic: str, partitions: list[int]) -> list[Span]:
        if topic == "away":
            raise KafkaUnavailable("away")
        if (topic, partitions) != ("incoming_messages", [0]):
            raise NoSuchPartition("there is none")
        return [Span(topic, 0, 3, 5)]

    async def read(self, _: Any) -> Any:
        nothing: tuple[Any, ...] = ()
        for each in nothing:
            yield each


async def look(monkeypatch: pytest.MonkeyPatch, topic: str, partition: str, offset: str) -> None:
    monkeypatch.setattr(record, "LogReader", Reader)
    models: list[Any] = []
    site: Any = SimpleNamespace(settings=None, page=lambda *arguments, **_: models.append(arguments[2]))
    record.register(site)
    request = SimpleNamespace(match_info={"topic": topic, "partition": partition, "offset": offset})
    await models[0](request, Viewer("ann", 0.0, operator=True, bodies=True))


@pytest.mark.parametrize(
    "address",
    [
        ("incoming_messages", "99999", "0"),
        ("no-topic", "0", "0"),
        ("incoming_messages", "0", "2"),
        ("incoming_messages", "0", "5"),
        ("incoming_messages", "0", "9" * 13),
        ("incoming_messages", "0", "4"),
    ],
)
async def test_a_record_that_is_not_there_is_not_found(
    monkeypatch: pytest.MonkeyPatch, address: tuple[str, str, str]
) -> None:
    with pytest.raises(NotFound, match=r"There is no record|is gone"):
        await look(monkeypatch, *address)


async def test_kafkas_absence_stays_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KafkaUnavailable):
        await look(monkeypatch, "away", "0", "0")
