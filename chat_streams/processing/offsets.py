"""Which record of each partition comes next, and from where to begin again: pure, driven by ``ordered.py``."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

P = TypeVar("P")

SAMPLE_SECONDS: Final = 1.0
RESEEK_SECONDS: Final = 2.0


class Admission(enum.Enum):
    """What to do with a record that arrived."""

    APPLY = "the next one"
    REPLAY = "applied already"
    HOLE = "records before it are missing"


class Checkpoint(msgspec.Struct, frozen=True):
    """What is committed beside an offset: the token its effects were made with, and where the loss window began."""

    token: str = ""
    rewind: int | None = None


class Start(NamedTuple):
    """Where a partition begins: the offset of the first record wanted, and the checkpoint committed with it."""

    offset: int
    checkpoint: Checkpoint


class _Partition:
    __slots__ = ("applied", "checkpoint", "epoch", "expected", "moved_at", "samples", "sought_at", "token")

    def __init__(self, start: Start, epoch: int, now: float) -> None:
        self.epoch = epoch
        self.expected = start.offset
        self.applied = start.offset
        self.checkpoint = start.checkpoint
        self.token = ""
        self.sought_at = self.moved_at = now
        oldest = start.offset if start.checkpoint.rewind is None else min(start.checkpoint.rewind, start.offset)
        self.samples: deque[tuple[float, int]] = deque([(now, oldest)])


class Progress(Generic[P]):
    """The records of each partition are admitted in contiguous order, and done in it.

    ``P`` names a partition. Times are in seconds of a monotonic clock. An ``epoch`` names one run through a
    partition, from its start to its end or the next start: what was admitted in an earlier one counts no more.
    """

    def __init__(self, loss_window: float) -> None:
        self._loss_window = loss_window
        self._partitions: dict[P, _Partition] = {}
        self._epochs = 0

    def __contains__(self, partition: P) -> bool:
        return partition in self._partitions

    def start(self, partition: P, start: Start, now: float) -> None:
        """Begin at an offset, forgetting what was done beyond it."""
        self._epochs += 1
        self._partitions[partition] = _Partition(start, self._epochs, now)

    def rewind_offset(self, partition: P) -> int:
        """Where the loss window began: what was applied from there on may be lost in a failover."""
        return self._partitions[partition].samples[0][1]

    def clear(self) -> None:
        """Forget all partitions."""
        self._partitions.clear()

    def epoch(self, partition: P) -> int | None:
        """The current run through a partition; ``None`` when it is not ours."""
        state = self._partitions.get(partition)
        return state.epoch if state else None

    def admit(self, partition: P, offset: int, now: float) -> Admission | None:
        """Judge a record that arrived; ``None`` for a partition that is not ours."""
        state = self._partitions.get(partition)
        if state is None:
            return None
        if offset < state.expected:
            return Admission.REPLAY
        if offset > state.expected:
            return Admission.HOLE
        state.expected = offset + 1
        state.moved_at = now
        return Admission.APPLY

    def reseek(self, partition: P, now: float) -> int | None:
        """The offset to seek to because of a hole, or ``None`` while an earlier seek may still work."""
        state = self._partitions[partition]
        if now - state.sought_at < RESEEK_SECONDS and state.sought_at >= state.moved_at:
            return None
        state.sought_at = now
        return state.expected

    def skip_to(self, partition: P, offset: int) -> None:
        """Go on at ``offset``: the log no longer holds what is before it."""
        state = self._partitions[partition]
        state.expected = max(state.expected, offset)

    def stalled(self, partition: P, end: int, now: float, patience: float) -> bool:
        """Whether nothing was admitted for ``patience`` seconds though the log's ``end`` is beyond."""
        state = self._partitions.get(partition)
        return (
            state is not None
            and state.expected < end
            and state.applied == state.expected
            and now - max(state.moved_at, state.sought_at) > patience
        )

    def done(self, partition: P, epoch: int, offset: int, now: float) -> None:
        """All effects of the records up to ``offset``, admitted in ``epoch``, have happened."""
        state = self._partitions.get(partition)
        if state is None or state.epoch != epoch:
            return
        state.applied = max(state.applied, offset + 1)
        if now - state.samples[-1][0] >= SAMPLE_SECONDS:
            state.samples.append((now, state.applied))
        # The first sample is the newest one from before the loss window.
        while len(state.samples) > 1 and state.samples[1][0] <= now - self._loss_window:
            state.samples.popleft()

    def committable(self, partition: P) -> int | None:
        """The offset to commit, that of the first record not done; ``None`` for a partition that is not ours."""
        state = self._partitions.get(partition)
        return state.applied if state else None

    def checkpoint(self, partition: P) -> Checkpoint:
        """What to commit beside that offset."""
        state = self._partitions.get(partition)
        return Checkpoint() if state is None else Checkpoint(state.token, state.samples[0][1])

    def committed(self, partition: P) -> Checkpoint:
        """The checkpoint this run began with."""
        return self._partitions[partition].checkpoint

    def token(self, partition: P) -> str:
        """The token adopted in this run, or ""."""
        state = self._partitions.get(partition)
        return state.token if state else ""

    def fence(self, partition: P, token: str) -> None:
        """Note the token adopted in this run."""
        if partition in self._partitions:
            self._partitions[partition].token = token
