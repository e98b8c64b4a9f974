"""The log as a gateway reads it: nobody waits for what it does not hold."""

from __future__ import annotations

import pytest

from chat_streams.model.errors import BeyondLog
from chat_streams.model.position import MAX_GENERATION, MAX_INDEX, ORIGIN, Position
from chat_streams.runtime.settings import Settings
from gateway.incoming_log import IncomingLog


class Log(IncomingLog):
    """A log of a generation that ends where the test says."""

    def __init__(self, generation: int, end: Position) -> None:
        super().__init__(Settings())
        self._generation = generation
        self._end = end

    async def end(self, partition: int) -> Position:
        return self._end


@pytest.mark.parametrize(
    ("end", "until"),
    [
        (Position.of(2, 9, MAX_INDEX), Position.of(2, 10, 0)),
        (Position.of(2, 9, MAX_INDEX), Position.of(MAX_GENERATION, 0, 0)),
        # Nothing is on the partition yet.
        (ORIGIN, Position.of(2, 0, 0)),
    ],
)
async def test_history_does_not_wait_for_what_is_beyond_the_log(end: Position, until: Position) -> None:
    with pytest.raises(BeyondLog):
        await Log(2, end).wait_for_history("bob", until)


@pytest.mark.parametrize("until", [ORIGIN, Position.of(1, 99, 3)])
async def test_what_is_of_an_earlier_log_is_written(until: Position) -> None:
    await Log(2, ORIGIN).wait_for_history("bob", until)
