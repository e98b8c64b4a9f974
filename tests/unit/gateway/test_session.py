"""A session: the table from a client's frame to its handler, and the ids in its log."""

from __future__ import annotations

import typing
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from gateway import handshake
from gateway.protocol import ClientFrame, Hello
from gateway.session import HANDLERS, Session


def test_each_frame_of_a_client_but_the_hello_has_a_handler() -> None:
    assert set(HANDLERS) == set(typing.get_args(ClientFrame)) - {Hello}


def test_each_line_of_a_session_has_user_device_and_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of the configuration there is now: a logger keeps that of its first use.
    monkeypatch.setattr(handshake, "log", structlog.get_logger())
    nothing: Any = None
    session = Session(nothing, nothing)
    session.user, session.device = "alice", "phone"
    with capture_logs() as lines:
        session.log.warning("history cannot be read", error="why")
    assert lines == [
        {
            "event": "history cannot be read",
            "log_level": "warning",
            "user": "alice",
            "device": "phone",
            "connection": session.id.hex(),
            "error": "why",
        }
    ]
