"""The page of one record of a topic: decoded, and its bytes: the first few, or more for viewers who may see bodies."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web

from chat_streams.inspector.access import Viewer
from chat_streams.inspector.decoding import decoded
from chat_streams.inspector.site import Answer, NotFound, Site
from chat_streams.kafka.log_reader import LogReader, LogRecord, Span
from chat_streams.model.errors import NoSuchPartition
from chat_streams.model.times import utc
from chat_streams.operations.redrive_service import HEX_BYTES

MOST_HEX: Final = 64 * 1024
MOST_ITEMS: Final = 200


def register(site: Site) -> None:
    """Add ``/record/{topic}/{partition}/{offset}``."""

    async def model(request: web.Request, viewer: Viewer) -> Answer:
        topic = request.match_info["topic"]
        partition, offset = int(request.match_info["partition"]), int(request.match_info["offset"])
        async with LogReader(site.settings) as reader:
            try:
                (span,) = await reader.spans(topic, [partition])
            except NoSuchPartition as error:
                raise NotFound(f"There is no record {topic}/{partition}/{offset}: {error}.") from error
            where = f"{topic}/{partition} holds offsets {span.first} to {span.end - 1}"
            if not span.first <= offset < span.end:
                raise NotFound(f"There is no record {offset}: {where}.")
            record: LogRecord | None = None
            async for found in reader.read([Span(topic, partition, offset, offset + 1)]):
                record = found
        if record is None:
            raise NotFound(f"Record {offset} is gone from the log, compacted or out of retention: {where}.")
        return Answer(
            {
                "topic": topic,
                "partition": partition,
                "offset": offset,
                "before": offset - 1 if offset > span.first else None,
                "after": offset + 1 if offset + 1 < span.end else None,
                "where": where,
                **shown(record, viewer.bodies),
            }
        )

    site.page("/record/{topic}/{partition:[0-9]{1,5}}/{offset:[0-9]{1,13}}", "record.html", model, needs=("Kafka",))


def shown(record: LogRecord, bodies: bool) -> dict[str, Any]:
    """Return the values that the page shows of a record."""
    items, problem = decoded(record.topic, record.value, bodies)
    value = record.value or b""
    limit = MOST_HEX if bodies else HEX_BYTES
    return {
        "at": utc(record.at),
        "key": None if record.key is None else record.key.decode(errors="backslashreplace"),
        "headers": {name: value.decode(errors="backslashreplace") for name, value in record.headers},
        "size": len(value),
        "items": items[:MOST_ITEMS] if items is not None else None,
        "count": len(items) if items is not None else None,
        "undecodable": problem,
        "hex": value[:limit].hex(),
        "hex_bytes": min(limit, len(value)),
    }
