"""The loop of an agent, through every exception at every await, every rebalance, and every cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_streams.model.errors import Rewound, UndecodableRecord, UnknownVersion
from chat_streams.model.records import Codec, Record
from chat_streams.processing import processor as module
from chat_streams.processing.offsets import Checkpoint, Progress, Start
from chat_streams.processing.processor import ATTEMPTS, Processor

Tp = tuple[str, int]
TPS: Final[list[Tp]] = [("t", 0), ("t", 1)]
RECORDS: Final = 6


class Text:
    """A codec of bytes that are their own value; ``bad`` does not decode, ``new`` is of a version to come."""

    def decode(self, value: bytes | None) -> bytes:
        if value == b"bad":
            raise UndecodableRecord("bad")
        if value == b"new":
            raise UnknownVersion("new")
        return value or b""


def message(tp: Tp, offset: int, value: bytes = b"x") -> Any:
    return SimpleNamespace(tp=tp, offset=offset, key=None, value=value, headers=(), timestamp=0.0)


class World:
    """A log of two partitions, and a worker that has them; what goes wrong is in a script of numbers."""

    def __init__(self, script: list[int]) -> None:
        self.script = script[::-1]
        self.seeks = 0
        self.violations: list[str] = []
        self.progress: Progress[Tp] = Progress(60)
        self.position = dict.fromkeys(TPS, 0)
        self.committed: dict[Tp, tuple[int, Checkpoint]] = dict.fromkeys(TPS, (0, Checkpoint()))
        self.done: defaultdict[Tp, set[int]] = defaultdict(set)
        self.in_run: defaultdict[tuple[Tp, int | None], list[int]] = defaultdict(list)
        self.effects: list[tuple[asyncio.Future[None], list[tuple[Tp, int, int | None]]]] = []
        self.assign()

    def fault(self, *kinds: str) -> str:
        """Return what goes wrong now; nothing any more once the script is over."""
        return ("", *kinds)[self.number(len(kinds))]

    def number(self, most: int) -> int:
        """Return the next number of the script, from 0 to ``most``."""
        return self.script.pop() % (most + 1) if self.script else 0

    # Kafka

    def assign(self) -> None:
        for tp in TPS:
            self.progress.start(tp, Start(*self.committed[tp]), 0.0)
            self.position[tp] = self.committed[tp][0]

    def rebalance(self) -> None:
        self.progress.clear()
        self.assign()

    def commit(self) -> None:
        for tp in TPS:
            found = self.progress.to_commit(tp)
            assert found is not None
            assert set(range(found[0])) <= self.done[tp], f"{found[0]} committed, done: {self.done[tp]}"
            self.committed[tp] = found

    async def batches(self) -> AsyncIterator[list[Any]]:
        while self.script or any((self.progress.committable(tp) or 0) < RECORDS for tp in TPS):
            kind = self.fault("rebalance", "commit", "hole", "replay", "none")
            if kind == "rebalance":
                self.rebalance()
            elif kind in ("hole", "replay"):
                tp = TPS[self.number(1)]
                self.position[tp] = max(0, self.position[tp] + (1 if kind == "hole" else -1))
            batch = []
            for tp in TPS:
                count = 3 - self.number(3) if self.script else RECORDS
                batch += [message(tp, o) for o in range(self.position[tp], min(self.position[tp] + count, RECORDS))]
                self.position[tp] = max(self.position[tp], min(self.position[tp] + count, RECORDS))
            self.commit()
            if batch:
                yield batch
            elif not self.script:
                for tp in TPS:
                    # What the watchdog does, where a hole was the last that came.
                    if self.progress.stalled(tp, RECORDS, math.inf, 0):
                        self.fill_hole(tp, "no progress")
            await asyncio.sleep(0)

    async def engines(self) -> None:
        """Finish effects, for as long as this runs."""
        while True:
            self.finish_effects()
            await asyncio.sleep(0)

    def finish_effects(self) -> None:
        for future, records in list(self.effects):
            if self.fault("later", "later", "later", "later"):
                continue
            self.effects.remove((future, records))
            if future.done():
                continue
            kind = self.fault("error", "cancelled")
            if kind == "error":
                future.set_exception(OSError())
            elif kind == "cancelled":
                future.cancel()
            else:
                future.set_result(None)
                self.note_applied(records)

    # What the records cause

    async def apply(self, records: list[Record[bytes]]) -> Awaitable[Any] | None:
        which = [(TPS[r.partition], r.offset, self.progress.epoch(TPS[r.partition])) for r in records]
        await asyncio.sleep(0)
        kind = self.fault("error", "cancelled", "rewind", "rebalance", "late", "effect", "effect", "effect", "away")
        if kind == "late":
            await asyncio.sleep(0)
            kind = self.fault("error", "cancelled", "rewind", "rebalance", "away")
        if kind == "error":
            raise ValueError
        if kind == "away":
            raise OSError
        if kind == "cancelled":
            raise asyncio.CancelledError
        if kind == "rewind":
            tp = which[0][0]
            offset = self.number(which[0][1])
            self.progress.rewind(tp, offset, 0.0)
            self.position[tp] = self.progress.committable(tp) or 0
            raise Rewound
        if kind == "rebalance":
            self.rebalance()
        if kind == "effect":
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.effects.append((future, which))
            return future
        self.note_applied(which)
        return None

    def note_applied(self, records: list[tuple[Tp, int, int | None]]) -> None:
        for tp, offset, epoch in records:
            if offset in self.in_run[tp, epoch]:
                self.violations.append(f"{tp} {offset} was applied twice in a run")
            self.in_run[tp, epoch].append(offset)
            self.done[tp].add(offset)

    # What a processor asks for

    def fill_hole(self, tp: Tp, why: str) -> None:
        self.seeks += 1  # Each long after the one before.
        offset = self.progress.reseek(tp, time.monotonic() + 10.0 * self.seeks)
        if offset is not None:
            self.position[tp] = offset

    def go_on(self, tp: Tp) -> None:
        self.position[tp] = self.progress.restart(tp, 0.0) or 0

    async def bury(self, found: Any, error: BaseException) -> None:
        if isinstance(error, Rewound | OSError):
            self.violations.append(f"a dead letter names {error!r}")
        await asyncio.sleep(0)
        self.done[found.tp].add(found.offset)

    def note_failure(self, found: Any, attempt: int, error: BaseException) -> None:
        if attempt >= ATTEMPTS or isinstance(error, Rewound | OSError):
            self.violations.append(f"attempt {attempt}: {error!r}")

    def note_done(self, topic: str, count: int, seconds: float) -> None: ...

    def is_away(self, error: BaseException) -> bool:
        return isinstance(error, OSError)

    def end(self, error: BaseException) -> None:
        raise error


def processor(world: Any) -> Processor[bytes]:
    codec: Codec[bytes] = Text()  # type: ignore[assignment]
    return Processor("app", codec, world.apply, world.progress, world, world.is_away)


@settings(deadline=None, max_examples=400)
@given(script=st.lists(st.integers(0, 39), max_size=80), most_under_way=st.sampled_from([8, 1]))
def test_all_is_applied_in_the_end_and_nothing_is_committed_before(script: list[int], most_under_way: int) -> None:
    async def run() -> None:
        world = World(script)
        engines = asyncio.create_task(world.engines())
        while True:
            task = asyncio.create_task(processor(world).run(world.batches()))
            cancel_after = 1 + world.number(29) if world.fault("cancel") else None
            if cancel_after is None:
                await task
                break
            for _ in range(cancel_after):
                await asyncio.sleep(0)
            # The agent is cancelled at some await: another one begins in the same worker, or in one that begins at what
            # is committed.
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            world.commit()
            if world.number(1):
                world.rebalance()
                world.effects.clear()
        engines.cancel()
        world.commit()
        assert world.violations == []
        assert {tp: offset for tp, (offset, _) in world.committed.items()} == dict.fromkeys(TPS, RECORDS)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RETRY_SECONDS", 0.0)
        patch.setattr(module, "EFFECTS_UNDER_WAY", most_under_way)
        asyncio.run(asyncio.wait_for(run(), 20))


class Poisoned(World):
    """A world in which the effect of one record always fails, once it has been sent."""

    def __init__(self) -> None:
        super().__init__([])
        self.buried: list[int] = []

    async def apply(self, records: list[Record[bytes]]) -> Awaitable[Any] | None:
        effect: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        which = [(TPS[r.partition], r.offset, self.progress.epoch(TPS[r.partition])) for r in records]
        if (TPS[0], 2) in {(tp, offset) for tp, offset, _ in which}:
            effect.set_exception(ValueError("too large"))
        else:
            effect.set_result(None)
            self.note_applied(which)
        return effect

    async def bury(self, found: Any, error: BaseException) -> None:
        assert found.tp == TPS[0]
        self.buried.append(found.offset)
        self.done[found.tp].add(found.offset)


async def test_a_record_whose_effect_always_fails_becomes_a_dead_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    world = Poisoned()
    async with asyncio.timeout(20):
        await processor(world).run(world.batches())
    world.commit()
    assert world.buried == [2]
    assert world.violations == []
    assert {tp: offset for tp, (offset, _) in world.committed.items()} == dict.fromkeys(TPS, RECORDS)


class Away(World):
    """A world whose engine is away for a while, for what applies records or for the effects they leave under way."""

    def __init__(self, in_effect: bool) -> None:
        super().__init__([])
        self.in_effect = in_effect
        self.tries = 0
        self.sizes: list[int] = []
        self.buried: list[int] = []

    async def apply(self, records: list[Record[bytes]]) -> Awaitable[Any] | None:
        self.tries += 1
        self.sizes.append(len(records))
        effect: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.tries <= 3 * ATTEMPTS:
            if not self.in_effect:
                raise ConnectionRefusedError("no engine")
            effect.set_exception(ConnectionRefusedError("no engine"))
            return effect
        self.note_applied([(TPS[r.partition], r.offset, self.progress.epoch(TPS[r.partition])) for r in records])
        effect.set_result(None)
        return effect

    async def bury(self, found: Any, error: BaseException) -> None:
        self.buried.append(found.offset)


@pytest.mark.parametrize("in_effect", [False, True])
async def test_an_engine_that_is_away_is_waited_for_and_no_record_is_blamed(
    monkeypatch: pytest.MonkeyPatch, in_effect: bool
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    world = Away(in_effect)
    async with asyncio.timeout(20):
        await processor(world).run(world.batches())
    world.commit()
    assert (world.buried, world.violations) == ([], [])
    assert {tp: offset for tp, (offset, _) in world.committed.items()} == dict.fromkeys(TPS, RECORDS)
    # Nothing is gained by halving what an engine did not answer.
    assert set(world.sizes) == {2 * RECORDS}


async def test_what_is_done_out_of_order_begins_the_partition_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World([])
    done = world.progress.done
    refused = 0

    def skipping(partition: Tp, epoch: int, first: int, last: int, now: float) -> bool:
        nonlocal refused
        if not refused:
            first += 1
        follows = done(partition, epoch, first, last, now)
        refused += not follows
        return follows

    monkeypatch.setattr(world.progress, "done", skipping)
    async with asyncio.timeout(20):
        await processor(world).run(world.batches())
    world.commit()
    assert refused == 1
    assert {tp: offset for tp, (offset, _) in world.committed.items()} == dict.fromkeys(TPS, RECORDS)
