"""``ack``: all up to a position has arrived at the client."""

from __future__ import annotations

from chat_streams.model.codes import ErrorCode
from chat_streams.model.position import Position
from gateway import protocol
from gateway.handlers.context import SessionContext
from gateway.protocol import Ack
from gateway.state.delivery_state import InvalidAck


def handle(session: SessionContext, frame: Ack) -> None:
    """Move the cursor, or refuse a position that was not sent yet."""
    state = session.state
    before = state.unacknowledged
    try:
        moved = state.acknowledge(Position.parse(frame.pos))
    except InvalidAck as error:
        session.writer.put(protocol.error(ErrorCode.BAD_ACK, str(error)))
        return
    if moved:
        session.on_acknowledged(before - state.unacknowledged)
