"""The fault matrix: each kind of fault, on each part, in each phase, under a random load; ``make faults``."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import itertools
import os
import random
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from chat_streams.kafka.names import INCOMING_MESSAGES
from tests.faults.clocks import HOUR, set_clock, set_right
from tests.faults.crowd import Crowd, Phase
from tests.faults.engines_away import ENGINES, EnginesAway, Outage, drawn
from tests.faults.kafka_away import Absence, KafkaAway
from tests.faults.proxy import WORKERS, CuttableStack, Proxy
from tests.faults.recreated import TopicRecreated
from tests.faults.report import COLUMNS, print_table, table_of
from tests.faults.retention import RetentionPasses
from tests.faults.runner import add_options, options_of, show
from tests.faults.trial import Fault, Result, Trial

KINDS = ("kill", "pause", "cut")
CLOCKS = {"ahead": HOUR, "behind": -HOUR}
"""Kinds of faults of processes of ours: by how many seconds the clock is ahead."""
PARTS = ("gateway", "messaging", "notification", "history", "kafka", "redis", "dynamodb")
PAUSE_S, AWAY_S = 30.0, 300.0
EVICT_S = 3.0
CUT_S = 8.0
"""Seconds of a cut: longer than a worker's session with Kafka lasts."""
DOCUMENT_MARKS = "<!-- table -->", "<!-- end of table -->"


class Lengths(NamedTuple):
    """The lengths of the faults that have one, in seconds: of a pause, and of a long absence of Kafka."""

    pause: float = PAUSE_S
    away: float = AWAY_S


class Cell(NamedTuple):
    """One fault: its kind, its part, and the phase in which it happens."""

    kind: str
    part: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.kind}:{self.part}:{self.phase}"


CELLS = [Cell(kind, part, phase) for part, kind, phase in itertools.product(PARTS, KINDS, Phase)]
CELLS += [Cell("away", "kafka", phase) for phase in Phase]
CELLS += [Cell(kind, "engines", phase) for kind, phase in itertools.product(("pause", "kill", "row"), Phase)]
CELLS += [Cell("recreated", "topic", phase) for phase in Phase]
CELLS += [Cell(kind, "redis", phase) for kind, phase in itertools.product(("flushall", "evict"), Phase)]
CELLS += [Cell(kind, part, phase) for part, kind, phase in itertools.product(("gateway", *WORKERS), CLOCKS, Phase)]
CELLS += [Cell("retention", part, phase) for part, phase in itertools.product(WORKERS, Phase)]


# The faults


class CellFault(Fault):
    """The fault of a cell, on one instance of its part."""

    def __init__(self, stack: CuttableStack, cell: Cell, rng: random.Random, pause_s: float) -> None:
        super().__init__(stack)
        names = [cell.part] if cell.part in ("kafka", "redis", "dynamodb") else [cell.part, f"{cell.part}-2"]
        self.victim = rng.choice(names)
        self._cuttable = stack
        self._cell = cell
        self._pause_s = pause_s

    async def happen(self, crowd: Crowd) -> None:
        """Cause the cell's kind of fault; returns when the part is back."""
        match self._cell.kind:
            case "ahead" | "behind" as kind:
                set_clock(self.stack.running[self.victim].part, CLOCKS[kind])
                await self.kill(self.victim)
            case "kill":
                await self.kill(self.victim)
            case "pause":
                await self.pause(self.victim, self._pause_s)
            case "flushall":
                await self.stack.redis.flushall(target_nodes=self.stack.redis.get_primaries())
            case "evict":
                await self._evict()
            case _:
                await self._cut()

    async def end(self) -> None:
        """Start a part with the right clock again."""
        if self._cell.kind in CLOCKS:
            set_right(self.stack.running[self.victim].part)
            await self.kill(self.victim)

    async def _cut(self) -> None:
        proxies = self._proxies()
        for proxy in proxies:
            proxy.cut()
        try:
            await asyncio.sleep(CUT_S)
        finally:
            for proxy in proxies:
                await proxy.restore()

    async def _evict(self) -> None:
        """Have Redis delete any keys, until half of the memory that the data takes is free."""
        redis = self.stack.redis
        memory: dict[str, Any] = await redis.info("memory", target_nodes=redis.get_default_node())
        half = memory["used_memory_startup"] + memory["used_memory_dataset"] // 2
        await redis.config_set("maxmemory-policy", "allkeys-random")
        await redis.config_set("maxmemory", half)
        try:
            await asyncio.sleep(EVICT_S)
            stats: dict[str, Any] = await redis.info("stats", target_nodes=redis.get_default_node())
            assert stats["evicted_keys"] > 0
        finally:
            await redis.config_set("maxmemory", 0)
            await redis.config_set("maxmemory-policy", "noeviction")

    def _proxies(self) -> list[Proxy]:
        stack, victim = self._cuttable, self.victim
        if victim in stack.gateway_proxies:
            return [stack.gateway_proxies[victim]]
        if self._cell.part in WORKERS:
            return [stack.kafka_proxies[victim]]
        if victim == "kafka":
            return list(stack.kafka_proxies.values())
        return [stack.redis_proxy if victim == "redis" else stack.dynamodb_proxy]


def trial_of(cell: Cell, seed: int, lengths: Lengths, stack: CuttableStack) -> Trial:
    """Return the trial of a cell; the victim comes from the seed."""
    if cell.kind == "away":
        absence = Absence("pause", lengths.away)
        return Trial(str(cell), seed, cell.phase, KafkaAway(stack, absence), outage_s=absence.seconds)
    if cell.part == "engines":
        rng = random.Random(f"{seed} {cell} outages")
        outages = drawn(rng) if cell.kind == "row" else [Outage(cell.kind, ENGINES, lengths.pause)]
        length = sum(outage.seconds + outage.pause_s for outage in outages)
        return Trial(str(cell), seed, cell.phase, EnginesAway(stack, outages), with_history=True, outage_s=length)
    if cell.kind == "recreated":
        return Trial(str(cell), seed, cell.phase, TopicRecreated(stack, INCOMING_MESSAGES), with_history=True)
    if cell.kind == "retention":
        return Trial(str(cell), seed, cell.phase, RetentionPasses(stack, cell.part), with_history=True)
    fault = CellFault(stack, cell, random.Random(f"{seed} {cell} victim"), lengths.pause)
    return Trial(str(cell), seed, cell.phase, fault, with_history=cell.part in ("history", "dynamodb"))


# The run


def _selected(patterns: list[str]) -> list[Cell]:
    found = [cell for cell in CELLS if any(fnmatch.fnmatch(str(cell), pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"no cell is named like {' or '.join(patterns)}: {CELLS[0]}, ...")
    return found


def _in_order(results: list[Result]) -> list[Result]:
    order = {str(cell): n for n, cell in enumerate(CELLS)}
    return sorted(results, key=lambda r: (r.seed, order[r.cell]))


def _markdown(results: list[Result]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * 2 + "|--:" * 5 + "|---" + "|--:" * 2 + "|---|"]
    lines += [f"| {' | '.join(result.row())} |" for result in results]
    return "\n".join(lines)


def _write_markdown(file: Path, results: list[Result], lengths: Lengths) -> None:
    begin, end = DOCUMENT_MARKS
    text = file.read_text() if file.exists() else f"{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    done = f"{sum(r.ok for r in results)} of {len(results)} runs of cells OK"
    when = f"As run on {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, paused for {lengths.pause:g} s: {done}."
    if missing := [str(cell) for cell in CELLS if str(cell) not in {r.cell for r in results}]:
        when += f" Not run: {', '.join(missing)}."
    file.write_text(f"{head}{begin}\n\n{when}\n\n{_markdown(results)}\n\n{end}{tail}")


def main() -> None:
    """Parse the command line and run; exits with 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__)
    parser.add_argument("--cells", action="append", metavar="PATTERN", help="like 'kill:gateway:*'; may be repeated")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 1 to N for each cell (default: 1)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="begin with this one")
    parser.add_argument("--pause", type=float, default=PAUSE_S, metavar="SECONDS", help="of a SIGSTOP (default: 30)")
    parser.add_argument(
        "--away", type=float, default=AWAY_S, metavar="SECONDS", help="of 'away:kafka:*' (default: 300)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this document")
    add_options(parser)
    options = parser.parse_args()
    cells = _selected(options.cells or ["*"])
    lengths = Lengths(options.pause, options.away)
    work = {
        (str(cell), seed): partial(trial_of, cell, seed, lengths)
        for seed in range(options.first_seed, options.first_seed + options.seeds)
        for cell in cells
    }

    def write(results: list[Result]) -> None:
        if options.markdown is not None:
            _write_markdown(options.markdown, _in_order(results), lengths)

    setting = f"pause {lengths.pause:g}, away {lengths.away:g}"
    results = show(work, CuttableStack, options_of(options), setting, on_result=write)
    print_table(table_of("fault matrix", results))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
