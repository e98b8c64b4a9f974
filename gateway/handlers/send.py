"""``send``: a message for a user, refused at once or on its way to the log."""

from __future__ import annotations

import math
import time

from chat_streams.model.codes import ErrorCode
from chat_streams.model.records import LOGGED, Message
from gateway import protocol
from gateway.handlers.context import SessionContext
from gateway.protocol import Send
from gateway.publisher import Accepted


def handle(session: SessionContext, frame: Send) -> None:
    """Give the message to the publisher; its fate is told to the session (``on_confirmed``)."""
    services, settings = session.services, session.services.settings
    body = bytes(frame.body)
    if (wrong := protocol.why_no_body(body)) is not None:
        session.writer.put(protocol.error(ErrorCode.BAD_BODY, f"{wrong} - at `$.body`", id=frame.id))
        return
    if len(body) > settings.max_body:
        text = f"$.body has {len(body)} bytes, {settings.max_body} are allowed"
        session.writer.put(protocol.error(ErrorCode.TOO_LARGE, text, id=frame.id))
        return
    barrier = session.barrier
    if barrier is not None and (first := barrier.blocker(frame.to, frame.id, time.monotonic())) is not None:
        text = f"sent behind {first}, which was refused: send that again first, so that the order stays"
        session.writer.put(protocol.error(ErrorCode.OUT_OF_ORDER, text, id=frame.id))
        return
    if wait := session.rate_limiter.send(len(body), time.monotonic()):
        session.hold_back(frame.to, frame.id)
        text = f"more than {settings.send_rate:g} messages or {settings.send_bytes_rate:g} bytes a second"
        in_ms = math.ceil(wait * 1000)
        session.writer.put(protocol.error(ErrorCode.RATE_LIMITED, text, retry_in_ms=in_ms, id=frame.id))
        return
    tail = protocol.message_tail(frame.id, session.user, body)
    session.unconfirmed += 1
    traces, span = services.traces, None
    if traces is not None and traces.sampled():
        span = traces.begin("send", message=frame.id, sender=session.user, to=frame.to)
    services.publisher.send(Accepted(Message(frame.to, session.user, frame.id, LOGGED, tail), session, span))
