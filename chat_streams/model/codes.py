"""Codes that clients get: the close codes of a WebSocket."""

from __future__ import annotations

import enum


class Close(enum.IntEnum):
    """Close codes: 4000-4499 reconnect, 4500-4999 don't."""

    GOING_AWAY = 4000
    HELLO_TIMEOUT = 4008
    STORE_AWAY = 4010
    KEYS_AWAY = 4011
    TOO_MANY_CONNECTS = 4012
    TOKEN_EXPIRED = 4401
    BAD_TOKEN = 4501
    BAD_SEQUENCE = 4502
    NOT_JSON = 4503
    TAKEN_OVER = 4510
