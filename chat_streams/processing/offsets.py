"""The progress of each partition: the next record, the offset to commit (``consumer.py`` does). Pure."""

from __future__ import annotations

import enum
from collections import deque
from typing import Final, Generic, NamedTuple, TypeVar

import msgspec

P = TypeVar("P")

SAMPLE_SECONDS: Final = 1.0
RESEEK_SECONDS: Final = 2.0


class Admission(enum.Enum):
    """The decision about a record that arrived."""

    APPLY = "the next one"
    REPLAY = "applied already"
    HOLE = "records before it are missing"


class Checkpoint(msgspec.Struct, frozen=True):
    """The metadata committed with an offset: the fencing token of its writes, and the start of the loss window.

    ``topic_id`` is Kafka's id of the topic that the offset is of. Kafka forgets the offsets of a topic that is deleted,
    but a worker that has not noticed yet commits it again, by name: in the topic made anew it would skip records.
    """

    token: str = ""
    rewind: int | None = None
    topic_id: str = ""

    def is_of(self, topic_id: str) -> bool:
        """Return whether the offset is of the topic with this id, as far as both are known."""
        return not (self.topic_id and topic_id) or self.topic_id == topic_id


class Start(NamedTuple):
    """The start of a run through a partition: the first offset to apply, and the checkpoint committed with it."""

    offset: int
    checkpoint: Checkpoint


class LostRange(NamedTuple):
    """Records that are wanted and that the log no longer has: the offsets ``[first, end)``.

    Those from ``unapplied`` on were never applied; those below it were, and Redis has lost that.
    """

    first: int
    unapplied: int
    end: int


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
    """The progress of each partition: its records are admitted, and marked as done, in contiguous order.

    ``P`` is the type that names a partition. Times are in seconds of a monotonic clock. An ``epoch`` names one run
    through a partition, from its start until it is revoked or started again: records admitted in an earlier run no
    longer count.
    """

    def __init__(self, loss_window: float) -> None:
        self._loss_window = loss_window
        self._partitions: dict[P, _Partition] = {}
        self._epochs = 0

    def __contains__(self, partition: P) -> bool:
        return partition in self._partitions

    def start(self, partition: P, start: Start, now: float) -> None:
        """Start a new run at an offset; all records from there on count as not applied."""
        self._epochs += 1
        self._partitions[partition] = _Partition(start, self._epochs, now)

    def rewind_offset(self, partition: P) -> int:
        """Return the offset where the loss window starts: a failover may lose the writes for records from there on."""
        return self._partitions[partition].samples[0][1]

    def rewind(self, partition: P, offset: int, now: float) -> int:
        """Start a new run at ``offset``, or where all is done if that is earlier; returns where.

        Its fencing token is still to be taken.
        """
        offset = min(offset, self._partitions[partition].applied)
        self.start(partition, Start(offset, Checkpoint(self.expected_token(partition))), now)
        return offset

    def restart(self, partition: P, now: float) -> int | None:
        """Start a new run at the first record that is not done; returns its offset, ``None`` if not assigned."""
        state = self._partitions.get(partition)
        if state is None:
            return None
        self._epochs += 1
        state.epoch = self._epochs
        state.expected = state.applied
        state.sought_at = state.moved_at = now
        return state.applied

    def clear(self) -> None:
        """Forget all partitions."""
        self._partitions.clear()

    def epoch(self, partition: P) -> int | None:
        """Return the epoch of the current run through a partition; ``None`` when the partition is not assigned."""
        state = self._partitions.get(partition)
        return state.epoch if state else None

    def admit(self, partition: P, offset: int, now: float) -> Admission | None:
        """Decide about a record that arrived; returns ``None`` when the partition is not assigned."""
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
        """Return the offset to seek to after a hole; ``None`` while an earlier seek may still take effect."""
        state = self._partitions[partition]
        if now - state.sought_at < RESEEK_SECONDS and state.sought_at >= state.moved_at:
            return None
        state.sought_at = now
        return state.expected

    def expected(self, partition: P) -> int:
        """Return the offset of the record that comes next."""
        return self._partitions[partition].expected

    def skip_to(self, partition: P, epoch: int, offset: int, now: float) -> bool:
        """Expect the record at ``offset`` next, with all before it done, as the log no longer has the records between.

        Returns whether it is so: not if ``epoch`` is over, or something before those records is not done.
        """
        state = self._partitions.get(partition)
        if state is None or state.epoch != epoch or state.applied != state.expected or offset < state.expected:
            return False
        state.expected = offset
        self.done(partition, epoch, state.applied, offset - 1, now)
        state.sought_at = now
        return True

    def stalled(self, partition: P, end: int, now: float, timeout: float) -> bool:
        """Return whether a partition below the log's ``end`` stood still for ``timeout`` s, with nothing under way."""
        state = self._partitions.get(partition)
        return (
            state is not None
            and state.expected < end
            and state.applied == state.expected
            and now - max(state.moved_at, state.sought_at) > timeout
        )

    def done(self, partition: P, epoch: int, first: int, last: int, now: float) -> bool:
        """Note that the records from ``first`` to ``last`` are fully applied; ignored if ``epoch`` is over.

        Returns false, and counts nothing, where ``first`` is not the first one that is not done. So what is committed
        has no gap, whatever the caller does.
        """
        state = self._partitions.get(partition)
        if state is None or state.epoch != epoch:
            return True
        if first != state.applied or last >= state.expected:
            return False
        state.applied = max(state.applied, last + 1)
        if now - state.samples[-1][0] >= SAMPLE_SECONDS:
            state.samples.append((now, state.applied))
        # Keep one sample from before the loss window, the newest: it is the first in the list.
        while len(state.samples) > 1 and state.samples[1][0] <= now - self._loss_window:
            state.samples.popleft()
        return True

    def committable(self, partition: P) -> int | None:
        """Return the offset to commit: the first one that is not done; ``None`` when the partition is not assigned."""
        state = self._partitions.get(partition)
        return state.applied if state else None

    def to_commit(self, partition: P) -> tuple[int, Checkpoint] | None:
        """Return what to commit, offset and checkpoint; ``None`` when the partition is not assigned."""
        state = self._partitions.get(partition)
        return (
            None if state is None else (state.applied, Checkpoint(self.expected_token(partition), state.samples[0][1]))
        )

    def expected_token(self, partition: P) -> str:
        """Return the fencing token taken in this run, or else the committed one with which it started."""
        state = self._partitions[partition]
        return state.token or state.checkpoint.token

    def token(self, partition: P) -> str:
        """Return the fencing token taken in this run, or ""."""
        state = self._partitions.get(partition)
        return state.token if state else ""

    def fence(self, partition: P, token: str) -> None:
        """Note the fencing token taken in this run."""
        if partition in self._partitions:
            self._partitions[partition].token = token
