"""The history service: writes every message to the chat database, independently of delivery.

faust -A chat_streams.history worker
"""

from __future__ import annotations

import time
from typing import Any, Final

from prometheus_client import Counter, Histogram

from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING, Messages, Record
from chat_streams.model.redrive import first_offset
from chat_streams.processing.service import Service
from chat_streams.runtime.metrics import BUCKETS, REGISTRY
from tables.chat_history import ChatHistory, Entry

STORED: Final = Counter(
    "connect_chat_history_messages_stored_total", "Messages the chat database has.", registry=REGISTRY
)
WRITE_SECONDS: Final = Histogram(
    "connect_chat_history_write_seconds",
    "A batch's writes, waiting for DynamoDB included.",
    buckets=BUCKETS,
    registry=REGISTRY,
)

app = Service("history", redis=False)
incoming_messages = app.topic(INCOMING_MESSAGES)
history = ChatHistory(app.settings)
app.to_close["the chat database"] = history.close


@app.agent(incoming_messages)
async def keep(stream: Any) -> None:
    """Write each message to its conversation; writing one again stores the same item."""
    await app.process(stream, INCOMING, write)


async def write(records: list[Record[Messages]]) -> None:
    """Write all messages of some records, and wait until the database has stored them."""
    generation = app.kafka_log.generation
    entries = [
        Entry(
            Position.of(generation, record.offset, index),
            record.at,
            message,
            Position.of(generation, first, index),
        )
        for record in records
        # Once for a record: it decodes all headers, and a record has up to a thousand messages.
        for first in (first_offset(record.offset, record.headers),)
        for index, message in enumerate(record.value.messages)
    ]
    spans = app.begin_spans("history", records)
    began = time.monotonic()
    await history.put(entries)
    WRITE_SECONDS.observe(time.monotonic() - began)
    for span in spans.values():
        span.end()
    STORED.inc(len(entries))
