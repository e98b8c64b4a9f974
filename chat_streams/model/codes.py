"""The codes sent to clients: error codes for single frames, and close codes of connections (``docs/protocol.md``)."""

from __future__ import annotations

import enum
from typing import Self


class ErrorCode(enum.StrEnum):
    """The code of an ``error`` frame, with its meaning; ``retry`` tells whether the same frame may succeed later."""

    meaning: str
    retry: bool

    def __new__(cls, code: str, meaning: str, retry: bool) -> Self:
        """Create a member from its code; ``meaning`` and ``retry`` become attributes."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.meaning, member.retry = meaning, retry
        return member

    BAD_FRAME = "bad_frame", "a field is missing or wrong; the message names it", False
    BAD_BODY = "bad_body", "the body holds what parsers stumble over; the message names it", False
    UNKNOWN_TYPE = "unknown_type", "there is no such type of frame", False
    TOO_MANY = "too_many", "too many objects in one frame; none was handled", False
    TOO_LARGE = "too_large", "the body is above max_body_bytes, or what the log takes at present", False
    NOT_LOGGED = "not_logged", "the log did not take the message, or not for sure", True
    RATE_LIMITED = "rate_limited", "more messages or bytes a second than a user may send", True
    OUT_OF_ORDER = "out_of_order", "an earlier message to this recipient was refused", True
    BAD_ACK = "bad_ack", "the position is above the last until of this connection", False
    BUSY = "busy", "too many history requests are under way already", True
    HISTORY_UNAVAILABLE = "history_unavailable", "the chat database is away", True


class Close(enum.IntEnum):
    """A close code of the gateway, with its meaning. Clients reconnect after 4000-4499, but not after the others."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> Self:
        """Create a member from its number; ``meaning`` becomes an attribute."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    @property
    def reconnect(self) -> bool:
        """True when a client should reconnect after this code."""
        return self < 4500

    GOING_AWAY = 4000, "the gateway stops"
    FAILED = 4001, "a fault of the gateway"
    HELLO_TIMEOUT = 4008, "no hello in time"
    STORE_AWAY = 4010, "the offline store is away"
    KEYS_AWAY = 4011, "the keys that tokens are checked with are away"
    TOO_MANY_CONNECTS = 4012, "more connections a second than a user may open"
    TOKEN_EXPIRED = 4401, "the token has expired"
    BAD_TOKEN = 4501, "the token is refused"
    BAD_SEQUENCE = 4502, "the first frame was no hello, or a second hello came"
    NOT_JSON = 4503, "a frame is no JSON, or binary"
    ORIGIN_REFUSED = 4504, "pages of this origin may not connect"
    TAKEN_OVER = 4510, "a newer connection of this device has taken over"


STANDARD_CLOSES = {
    1000: "normal",
    1001: "the client goes away",
    1006: "lost without a close",
    1009: "a frame is too large",
}
"""The close codes of RFC 6455 with which a connection to the gateway may end, and their meanings."""
