"""The codes that the server sends, in the client's own copy; a test compares it with the server's."""

from __future__ import annotations

from typing import Final

RETRY: Final = {
    "bad_frame": False,
    "bad_body": False,
    "unknown_type": False,
    "too_many": False,
    "too_large": False,
    "not_logged": True,
    "rate_limited": True,
    "out_of_order": True,
    "bad_ack": False,
    "busy": True,
    "history_unavailable": True,
}
"""The codes of ``error`` frames, with True where the same frame may succeed later."""

CLOSES: Final = {
    4000: "the gateway stops",
    4001: "a fault of the gateway",
    4008: "no hello in time",
    4010: "the offline store is away",
    4011: "the keys that tokens are checked with are away",
    4012: "more connections a second than a user may open",
    4401: "the token has expired",
    4501: "the token is refused",
    4502: "the first frame was no hello, or a second hello came",
    4503: "a frame is no JSON, or binary",
    4504: "pages of this origin may not connect",
    4510: "a newer connection of this device has taken over",
}
"""The close codes that are specific to this server, and their meanings."""


def is_final(code: int) -> bool:
    """Return whether a close code forbids to reconnect until its cause is removed."""
    return 4500 <= code <= 4999
