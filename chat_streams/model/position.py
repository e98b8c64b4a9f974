"""The address of a message in the log, which is also the id of its entry in the recipient's inbox."""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Self

OFFSET_BITS: Final = 40
MAX_OFFSET: Final = (1 << OFFSET_BITS) - 1
MAX_GENERATION: Final = (1 << 24) - 1
MAX_INDEX: Final = (1 << 32) - 1

# Leading zeros are refused: each position has exactly one text, so that texts can be compared for equality.
_TEXT = re.compile(r"(0|[1-9][0-9]{0,19})-(0|[1-9][0-9]{0,9})", re.ASCII)


class Position(NamedTuple):
    """The address of a message, ordered as a pair of integers; its text is the id of a Redis Stream entry.

    ``entry`` is ``generation << 40 | offset``, where ``offset`` is that of the record in ``incoming_messages``;
    ``index`` is the index of the message in the record. Only positions of the same recipient can be compared, since
    all messages for one recipient are on one partition. Generations start at 1, so every message is above
    ``ORIGIN``, which is not a valid stream id.
    """

    entry: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which positions do not need

    @classmethod
    def of(cls, generation: int, offset: int, index: int) -> Self:
        """Return the position of the message at ``index`` in a record; raises ``ValueError`` when out of range."""
        if not (1 <= generation <= MAX_GENERATION and 0 <= offset <= MAX_OFFSET and 0 <= index <= MAX_INDEX):
            raise ValueError(f"generation {generation}, offset {offset}, index {index}: out of range")
        return cls(generation << OFFSET_BITS | offset, index)

    @classmethod
    def before(cls, generation: int, offset: int) -> Self:
        """Return the highest position below all messages of a record, and above those of the records before it."""
        if not offset and generation == 1:
            return cls(0, 0)
        return cls((generation << OFFSET_BITS | offset) - 1, MAX_INDEX)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the position that a text stands for; raises ``ValueError`` when it is not a position."""
        match = _TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:60]!r} is not a position")
        entry, index = int(match[1]), int(match[2])
        if entry >> OFFSET_BITS > MAX_GENERATION or index > MAX_INDEX:
            raise ValueError(f"{text!r} is not a position: out of range")
        return cls(entry, index)

    @property
    def generation(self) -> int:
        """The generation of the log; 0 for ``ORIGIN`` only."""
        return self.entry >> OFFSET_BITS

    @property
    def offset(self) -> int:
        """The offset of the record in its partition of ``incoming_messages``."""
        return self.entry & MAX_OFFSET

    def __str__(self) -> str:
        return f"{self.entry}-{self.index}"


ORIGIN: Final = Position(0, 0)
"""The position below every message: the cursor of a device that has acknowledged nothing."""
