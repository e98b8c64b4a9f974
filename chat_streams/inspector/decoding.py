"""Records as JSON values for the pages; the bodies of messages are masked unless the viewer may see them.

A thing is an item of a record: a message, a session event, a request, a delivery or a dead letter.
"""

from __future__ import annotations

import json
from typing import Any, Final

from chat_streams.kafka import names
from chat_streams.model.errors import UndecodableRecord, UnknownVersion
from chat_streams.model.records import (
    DEAD_LETTERS,
    INCOMING,
    OUTGOING,
    REQUESTS,
    SESSIONS,
    Codec,
    DeadLetter,
    Delivery,
    Message,
    Messages,
)
from chat_streams.operations.dead_letters import readable

_CODECS: Final[dict[str, Codec[Any]]] = {
    names.INCOMING_MESSAGES: INCOMING,
    names.SESSION_EVENTS: SESSIONS,
    names.INBOX_REQUESTS: REQUESTS,
    names.OUTGOING_MESSAGES: OUTGOING,
    names.DEAD_LETTERS: DEAD_LETTERS,
}


def things_of(topic: str, value: bytes | None) -> list[Any]:
    """Return the things in a record, decoded; raises ``UndecodableRecord`` or ``UnknownVersion``."""
    if topic not in _CODECS:
        try:
            found = json.loads(value or b"null")
        except (ValueError, RecursionError) as error:
            raise UndecodableRecord(f"records of {topic} are not decoded here") from error
        return [found if isinstance(found, dict) else {"value": found}]
    record = _CODECS[topic].decode(value)
    if isinstance(record, Messages):
        return list(record.messages)
    return [record] if topic == names.DEAD_LETTERS else list(record)


def field_of(thing: Any, name: str) -> Any:
    """Return a field of a thing, ``None`` if it has none; the field ``type`` is the kind of thing."""
    if isinstance(thing, dict):
        return thing.get(name, "record" if name == "type" else None)
    return thing.__struct_config__.tag or "message" if name == "type" else getattr(thing, name, None)


def shown(thing: Any, bodies: bool) -> dict[str, Any]:
    """Return a thing as JSON values."""
    if isinstance(thing, dict):
        return thing
    if isinstance(thing, Message):
        (item,) = readable(Messages((thing,)), bodies)
        return item
    (item,) = readable([thing], bodies)
    if isinstance(thing, DeadLetter):
        # A dead letter has a page that shows the record it holds, with bodies masked.
        item["value"] = f"<{len(thing.value or b'')} bytes>"
        item["key"] = f"<{len(thing.key or b'')} bytes>"
    if isinstance(thing, Delivery):
        text = thing.messages
        item["messages"] = text.decode(errors="replace") if bodies else f"<masked, {len(text)} bytes>"
    return item


def decoded(topic: str, value: bytes | None, bodies: bool) -> tuple[list[dict[str, Any]] | None, str | None]:
    """Return all things in a record as JSON values, or ``None`` and the reason why it can't be decoded."""
    try:
        return [shown(thing, bodies) for thing in things_of(topic, value)], None
    except (UndecodableRecord, UnknownVersion) as error:
        return None, str(error)
