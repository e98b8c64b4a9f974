"""The history service: writes every message to the chat database, independently of delivery.

faust -A chat_streams.history worker
"""

from __future__ import annotations

from typing import Any

from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.position import Position
from chat_streams.model.records import INCOMING, Messages, Record
from chat_streams.processing.service import Service
from tables.chat_history import ChatHistory, Entry

app = Service("history", redis=False)
incoming_messages = app.topic(INCOMING_MESSAGES)
history = ChatHistory(app.settings)


@app.agent(incoming_messages)
async def keep(stream: Any) -> None:
    """Write each message to its conversation; writing one again stores the same item."""
    await app.process(stream, INCOMING, write)


async def write(records: list[Record[Messages]]) -> None:
    """Write all messages of some records, and wait until the database has stored them."""
    generation = app.kafka_log.generation
    entries = [
        Entry(Position.of(generation, record.offset, index), message)
        for record in records
        for index, message in enumerate(record.value.messages)
    ]
    spans = app.begin_spans("history", records)
    with app.statistics.timed("write"):
        await history.put(entries)
    for span in spans.values():
        span.end()
    app.statistics.counters["stored"] += len(entries)
