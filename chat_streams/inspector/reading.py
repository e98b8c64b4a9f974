"""Records as JSON values, for the pages: bodies masked unless who looks may see them."""

from __future__ import annotations

import json
from typing import Any, Final

from chat_streams import topics
from chat_streams.dead_letters import readable
from chat_streams.records import (
    DEAD_LETTERS,
    INCOMING,
    OUTGOING,
    REQUESTS,
    SESSIONS,
    Codec,
    DeadLetter,
    Undecodable,
    UnknownVersion,
)

_CODECS: Final[dict[str, Codec[Any]]] = {
    topics.INCOMING_MESSAGES: INCOMING,
    topics.SESSION_EVENTS: SESSIONS,
    topics.INBOX_REQUESTS: REQUESTS,
    topics.OUTGOING_MESSAGES: OUTGOING,
    topics.DEAD_LETTERS: DEAD_LETTERS,
}


def decoded(topic: str, value: bytes | None, bodies: bool) -> tuple[list[dict[str, Any]] | None, str | None]:
    """The things in a record, or ``None`` and why it can't be decoded."""
    if topic not in _CODECS:
        try:
            found = json.loads(value or b"null")
        except (ValueError, RecursionError):
            return None, f"records of {topic} are not decoded here"
        return [found if isinstance(found, dict) else {"value": found}], None
    try:
        record = _CODECS[topic].decode(value)
    except (Undecodable, UnknownVersion) as error:
        return None, str(error)
    if topic == topics.DEAD_LETTERS:
        # The record it holds has a page of its own, where its bodies are masked.
        (item,) = readable([record], bodies)
        if isinstance(record, DeadLetter):
            item["value"] = f"<{len(record.value or b'')} bytes>"
            item["key"] = f"<{len(record.key or b'')} bytes>"
        return [item], None
    items = readable(record, bodies)
    if topic == topics.OUTGOING_MESSAGES:
        for item in items:
            if "messages" in item:
                text = bytes.fromhex(item["messages"])
                item["messages"] = text.decode(errors="replace") if bodies else f"<masked, {len(text)} bytes>"
    return items, None
