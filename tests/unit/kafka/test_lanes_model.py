"""Every interleaving of two writers and one reader, for a few records: with strict lanes nothing is lost or doubled.

A record at offset n of the source gives the item with origin n, for one inbox. A writer derives items in order, puts
them into its lane, and commits what is acknowledged. The partition may move to another writer, which the first hears of
late or never; a writer may rewind: it drops its lane and derives again from what is committed. A batch under way is
answered, or fails without saying whether it was written. Given up, it may still arrive, at any later time: that is
more than a client that was cut off lets happen. The reader takes an item for a repeat unless it is above all others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import pytest

RECORDS = 3
MOST_IN_BATCH = 2
TIME_OUTS, REWINDS, MOVES = 2, 1, 1


class Writer(NamedTuple):
    """A writer: the next offset it derives from, what its lane holds, and how much of that is under way."""

    following: int = 0
    lane: tuple[int, ...] = ()
    under_way: int = 0


IDLE = Writer(RECORDS)


class State(NamedTuple):
    """All that there is."""

    writers: tuple[Writer, Writer] = (Writer(), IDLE)
    owner: int = 0
    committed: int = 0
    late: tuple[tuple[int, ...], ...] = ()
    """Batches given up that may still arrive."""
    seen: int = -1
    read: tuple[int, ...] = ()
    time_outs: int = TIME_OUTS
    rewinds: int = REWINDS
    moves: int = MOVES


def arrive(state: State, batch: tuple[int, ...]) -> State:
    """A batch comes into the log, and the reader applies it."""
    seen, read = state.seen, state.read
    for origin in batch:
        if origin > seen:
            seen, read = origin, (*read, origin)
    return state._replace(seen=seen, read=read)


def following(state: State, policy: str) -> Iterator[State]:
    """Yield the states that one step leads to."""
    for index, writer in enumerate(state.writers):
        yield from steps_of(state, index, writer, policy)
    for index, batch in enumerate(state.late):
        yield arrive(state._replace(late=state.late[:index] + state.late[index + 1 :]), batch)
    if state.moves:
        # The former owner goes on, until it hears of it.
        other = 1 - state.owner
        yield with_writer(state._replace(owner=other, moves=state.moves - 1), other, Writer(state.committed))


def steps_of(state: State, index: int, writer: Writer, policy: str) -> Iterator[State]:
    if writer.following < RECORDS:
        yield with_writer(
            state, index, Writer(writer.following + 1, (*writer.lane, writer.following), writer.under_way)
        )
    if writer.lane and not writer.under_way:
        yield with_writer(state, index, writer._replace(under_way=min(MOST_IN_BATCH, len(writer.lane))))
    if writer.under_way:
        batch, rest = writer.lane[: writer.under_way], writer.lane[writer.under_way :]
        yield with_writer(arrive(state, batch), index, Writer(writer.following, rest))
        if state.time_outs:
            lane = {"strict": batch + rest, "behind": rest + batch, "alone": batch[1:] + rest}[policy]
            yield given_up(state._replace(time_outs=state.time_outs - 1), index, Writer(writer.following, lane))
    if index == state.owner:
        done = min(writer.lane, default=writer.following)
        if done > state.committed:
            yield state._replace(committed=done)
        if state.rewinds:
            yield given_up(state._replace(rewinds=state.rewinds - 1), index, Writer(state.committed))
    elif writer != IDLE:
        # It hears that the partition is no longer its own.
        yield given_up(state, index, IDLE)


def given_up(state: State, index: int, after: Writer) -> State:
    """End what is under way with unknown outcome: it may arrive at once, late, or (no state needs it) not at all."""
    writer = state.writers[index]
    if writer.under_way:
        state = state._replace(late=tuple(sorted((*state.late, writer.lane[: writer.under_way]))))
    return with_writer(state, index, after)


def with_writer(state: State, index: int, writer: Writer) -> State:
    writers = (writer, state.writers[1]) if index == 0 else (state.writers[0], writer)
    return state._replace(writers=writers)


def search(policy: str) -> tuple[int, State | None]:
    """Look at all states; return how many there are, or the first in which an item is lost, doubled or swapped."""
    first = State()
    known = {first}
    to_do = deque([first])
    while to_do:
        state = to_do.popleft()
        if state.read != tuple(range(len(state.read))) or len(state.read) < state.committed:
            return len(known), state
        for each in following(state, policy):
            if each not in known:
                known.add(each)
                to_do.append(each)
    return len(known), None


def test_strict_lanes_lose_and_double_nothing() -> None:
    count, wrong = search("strict")
    assert wrong is None
    assert count > 10_000


@pytest.mark.parametrize("policy", ["behind", "alone"])
def test_a_lane_that_lets_one_write_pass_another_loses_it(policy: str) -> None:
    _, wrong = search(policy)
    assert wrong is not None
    assert set(range(max(wrong.read, default=-1) + 1)) - set(wrong.read) or len(wrong.read) < wrong.committed
