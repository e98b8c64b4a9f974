"""``history``: old messages, read from the chat database beside the session's other work."""

from __future__ import annotations

from typing import Final

from chat_streams.model.codes import ErrorCode
from chat_streams.model.errors import BeyondLog, HistoryUnavailable
from chat_streams.model.position import Position
from gateway import protocol
from gateway.handlers.context import SessionContext
from gateway.protocol import History

REQUESTS_AT_ONCE: Final = 2
"""Requests of one connection that are answered at the same time; with so many, its frames are not read."""


def handle(session: SessionContext, frame: History) -> None:
    """Begin to answer, if the request is one and not one too many."""
    wants = frame.with_ is not None, frame.after is not None, frame.until is not None
    if wants not in ((True, False, False), (False, True, True)):
        text = "either $.with, or $.after and $.until"
        session.writer.put(protocol.error(ErrorCode.BAD_FRAME, text, ref=frame.ref))
    elif session.history_requests >= REQUESTS_AT_ONCE:
        text = f"at most {REQUESTS_AT_ONCE} history requests at once"
        session.writer.put(protocol.error(ErrorCode.BUSY, text, ref=frame.ref))
    else:
        session.history_requests += 1
        session.spawn(_answer(session, frame))


async def _answer(session: SessionContext, frame: History) -> None:
    services = session.services
    try:
        if frame.with_ is not None:
            page = await services.history.page(session.user, frame.with_, frame.before, frame.page_size)
        else:
            assert frame.after is not None
            assert frame.until is not None
            before = Position.parse(frame.before) if frame.before is not None else None
            after, until = Position.parse(frame.after), Position.parse(frame.until)
            # What has only just overflowed is not in the chat database yet, and an empty page would read as
            # "nothing was missed".
            await services.log.wait_for_history(session.user, until)
            page = await services.history.range(session.user, after, until, before, frame.page_size)
    except ValueError as error:
        session.writer.put(protocol.error(ErrorCode.BAD_FRAME, f"{error} - at `$.before`", ref=frame.ref))
    except BeyondLog as error:
        session.writer.put(protocol.error(ErrorCode.BAD_FRAME, f"{error} - at `$.until`", ref=frame.ref))
    except HistoryUnavailable as error:
        session.log.warning("history cannot be read", error=repr(error))
        text = "the chat database is away, try again"
        session.writer.put(protocol.error(ErrorCode.HISTORY_UNAVAILABLE, text, ref=frame.ref))
    else:
        session.writer.put(protocol.history(frame.ref, page.messages, page.cursor))
    finally:
        session.history_requests -= 1
        session.update_reading()
