"""Several engines are away at the same time, or one after the other while the services still recover."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import NamedTuple

from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd
from tests.faults.trial import Fault

ENGINES = ("kafka", "redis", "dynamodb")
OUTAGES_IN_A_ROW = 4
OUTAGE_S, BETWEEN_S = (1.0, 12.0), (0.0, 4.0)
"""Seconds of an outage of those in a row, and between two of them: the services have not recovered by then."""


class Outage(NamedTuple):
    """A way for engines to be away together: ``pause`` (SIGSTOP) or ``kill`` (SIGKILL, then a start)."""

    kind: str
    engines: Sequence[str]
    seconds: float
    pause_s: float = 0.0
    """Seconds from its end until the next one."""


def drawn(rng: random.Random) -> list[Outage]:
    """Return outages in a row, each of one engine or more; Kafka and Redis are away together in the last one."""
    outages = []
    for number in range(OUTAGES_IN_A_ROW):
        engines = tuple(sorted(rng.sample(ENGINES, rng.randint(1, len(ENGINES)))))
        if number == OUTAGES_IN_A_ROW - 1:
            engines = ("kafka", "redis")
        between_s = 0.0 if number == OUTAGES_IN_A_ROW - 1 else rng.uniform(*BETWEEN_S)
        outages.append(Outage(rng.choice(("pause", "kill")), engines, rng.uniform(*OUTAGE_S), between_s))
    return outages


class EnginesAway(Fault):
    """Engines do not answer; all of an outage go, and come back, at the same time."""

    def __init__(self, stack: Stack, outages: Sequence[Outage]) -> None:
        super().__init__(stack)
        self.victim = ", ".join(name for name in ENGINES if any(name in outage.engines for outage in outages))
        self._outages = outages

    async def happen(self, crowd: Crowd) -> None:
        """Have all outages, one after the other."""
        for outage in self._outages:
            await self._have(outage)
            await asyncio.sleep(outage.pause_s)

    async def _have(self, outage: Outage) -> None:
        engines = [self.stack.running[name] for name in outage.engines]
        is_killed = outage.kind == "kill"
        self.away.update(outage.engines)
        for engine in engines:
            if is_killed:
                engine.kill()
            else:
                engine.pause()
        try:
            await asyncio.sleep(outage.seconds)
        finally:
            for engine in engines:
                engine.resume()
        if is_killed:
            await asyncio.gather(*(self.stack.start(engine.part) for engine in engines))
        self.away.difference_update(outage.engines)
