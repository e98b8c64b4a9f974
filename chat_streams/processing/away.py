"""The errors of engines that are away, or lack something an operator can give: a worker waits, and blames no record."""

from __future__ import annotations

import asyncio
from typing import Final

from chat_streams.kafka.client import KAFKA_AWAY, NEVER_TAKEN
from chat_streams.model.errors import EngineUnavailable, LaneDropped

AWAY: Final = (EngineUnavailable, *KAFKA_AWAY)


def is_away(error: BaseException) -> bool:
    """Return whether an exception is an engine's, and not about what the engine was given.

    Engines are reached over sockets, so an ``OSError`` is one of theirs. A cancellation counts as well: it came out of
    a client, since ours is raised before anybody asks. Writes that were given up together have the cause of that.
    """
    if isinstance(error, LaneDropped):
        return error.__cause__ is not None and is_away(error.__cause__)
    if isinstance(error, BaseExceptionGroup):
        return all(is_away(each) for each in error.exceptions)
    return isinstance(error, (*AWAY, asyncio.CancelledError)) and not isinstance(error, NEVER_TAKEN)
