"""``ping``: answered by a ``pong``."""

from __future__ import annotations

from gateway import protocol
from gateway.handlers.context import SessionContext
from gateway.protocol import Ping


def handle(session: SessionContext, frame: Ping) -> None:
    """Answer."""
    session.writer.put(protocol.pong(frame.ref))
