"""The address of a message in the log, which is also its place in the recipient's inbox."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

OFFSET_BITS: Final = 40
MAX_OFFSET: Final = (1 << OFFSET_BITS) - 1
MAX_GENERATION: Final = (1 << 24) - 1
MAX_INDEX: Final = (1 << 32) - 1

# No leading zeros: one position has one text, so texts may be compared for equality.
_TEXT = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,9})", re.ASCII)


class Position(NamedTuple):
    """A message's address: ordered as a pair of integers; its text is the id of a Redis Stream entry.

    ``entry`` is ``generation << 40 | offset`` (the offset of the record in ``incoming_messages``), ``index`` that
    of the message in the record. Positions are comparable for one recipient only: one recipient lives on one
    partition. Generations start at 1, so every message is above ``ORIGIN``, which is no valid stream id.
    """

    entry: int
    index: int  # type: ignore[assignment]  # in the place of tuple.index, which nobody needs of a position

    @classmethod
    def of(cls, generation: int, offset: int, index: int) -> Self:
        """The position of the message at ``index`` in a record; raises ``ValueError`` when out of range."""
        if not (1 <= generation <= MAX_GENERATION and 0 <= offset <= MAX_OFFSET and 0 <= index <= MAX_INDEX):
            raise ValueError(f"generation {generation}, offset {offset}, index {index}: out of range")
        return cls(generation << OFFSET_BITS | offset, index)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The position a text stands for; raises ``ValueError`` when it stands for none."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:60]!r} is not a position")
        entry, index = int(match[1]), int(match[2])
        if entry >> OFFSET_BITS > MAX_GENERATION or index > MAX_INDEX:
            raise ValueError(f"{text!r} is not a position: out of range")
        return cls(entry, index)

    @property
    def generation(self) -> int:
        """Which log it is an address in; 0 for ``ORIGIN`` only."""
        return self.entry >> OFFSET_BITS

    @property
    def offset(self) -> int:
        """The offset of the record in its partition of ``incoming_messages``."""
        return self.entry & MAX_OFFSET

    def __str__(self) -> str:
        return f"{self.entry}-{self.index}"


ORIGIN: Final = Position(0, 0)
"""Below every message: the cursor of a device that has acknowledged nothing."""
