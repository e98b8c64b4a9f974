"""The fault matrix: each kind of fault, on each part, in each phase, under a random load; ``make faults``."""

from __future__ import annotations

import argparse
import asyncio
import fnmatch
import itertools
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.crowd import Phase
from tests.faults.proxy import WORKERS, CuttableStack, Proxy
from tests.faults.trial import PROMISED, Fault, Limits, Result, Stage, Trial, run_trial

KINDS = ("kill", "pause", "cut")
PARTS = ("gateway", "messaging", "notification", "history", "kafka", "redis", "dynamodb")
PAUSE_S = 30.0
CUT_S = 8.0
"""Seconds of a cut: longer than a worker's session with Kafka lasts."""
DOCUMENT_MARKS = "<!-- table -->", "<!-- end of table -->"
TABLE_WIDTH = 120


class Cell(NamedTuple):
    """One fault: its kind, its part, and the phase in which it happens."""

    kind: str
    part: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.kind}:{self.part}:{self.phase}"


CELLS = [Cell(kind, part, phase) for part, kind, phase in itertools.product(PARTS, KINDS, Phase)]


COLUMNS = ("cell", "seed", "confirmed", "lost", "swapped", "repeated", "audit", "away s", "healed s", "")


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

    async def happen(self) -> None:
        """Kill, pause or cut; returns when the part is back."""
        if self._cell.kind == "kill":
            await self.kill(self.victim)
        elif self._cell.kind == "pause":
            await self.pause(self.victim, self._pause_s)
        else:
            await self._cut()

    async def _cut(self) -> None:
        proxies = self._proxies()
        for proxy in proxies:
            proxy.cut()
        try:
            await asyncio.sleep(CUT_S)
        finally:
            for proxy in proxies:
                await proxy.restore()

    def _proxies(self) -> list[Proxy]:
        stack, victim = self._cuttable, self.victim
        if victim in stack.gateway_proxies:
            return [stack.gateway_proxies[victim]]
        if self._cell.part in WORKERS:
            return [stack.kafka_proxies[victim]]
        if victim == "kafka":
            return list(stack.kafka_proxies.values())
        return [stack.redis_proxy if victim == "redis" else stack.dynamodb_proxy]


async def run_cell(
    stack: CuttableStack, cell: Cell, seed: int, pause_s: float, stage: Stage, limits: Limits = PROMISED
) -> Result:
    """Run one cell on a healthy stack; no failure of the stack raises an exception."""
    fault = CellFault(stack, cell, random.Random(f"{seed} {cell} victim"), pause_s)
    with_history = cell.part in ("history", "dynamodb")
    return await run_trial(stack, Trial(str(cell), seed, cell.phase, fault, with_history), stage, limits)


# The run


def _selected(patterns: list[str]) -> list[Cell]:
    found = [cell for cell in CELLS if any(fnmatch.fnmatch(str(cell), pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"no cell is named like {' or '.join(patterns)}: {CELLS[0]}, ...")
    return found


async def run(
    work: Iterable[tuple[int, Cell]], pause_s: float, stage: Stage, done: Callable[[Result], None], keep: Path | None
) -> None:
    """Run cells one after the other, each on the previous cell's stack unless that cell failed."""
    left = list(work)
    while left:
        stage("starting a stack")
        failed = False
        with tempfile.TemporaryDirectory(prefix="chat-faults-", ignore_cleanup_errors=True) as folder:
            async with CuttableStack(Path(folder) / "stack") as stack:
                while left and not failed:
                    seed, cell = left.pop(0)
                    result = await run_cell(stack, cell, seed, pause_s, partial(_stage_of, stage, cell))
                    failed = not result.ok
                    if failed and keep is not None:
                        _keep_logs(stack, result, keep)
                    done(result)


def _stage_of(stage: Stage, cell: Cell, text: str) -> None:
    stage(f"{cell}: {text}")


def _keep_logs(stack: CuttableStack, result: Result, folder: Path) -> None:
    target = folder / f"{result.cell.replace(':', '-')}-{result.seed}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stack.layout.logs, target)
    result.problems.append(f"logs: {target}")


def _load(file: Path) -> list[Result]:
    return [Result(**values) for values in json.loads(file.read_text())] if file.exists() else []


def _merge(old: list[Result], new: list[Result]) -> list[Result]:
    found = {(r.cell, r.seed): r for r in [*old, *new]}
    order = {str(cell): n for n, cell in enumerate(CELLS)}
    return sorted(found.values(), key=lambda r: (r.seed, order[r.cell]))


def _markdown(results: list[Result]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * 2 + "|--:" * 4 + "|---" + "|--:" * 2 + "|---|"]
    lines += [f"| {' | '.join(result.row())} |" for result in results]
    return "\n".join(lines)


def _write_markdown(file: Path, results: list[Result], pause_s: float) -> None:
    begin, end = DOCUMENT_MARKS
    text = file.read_text() if file.exists() else f"{begin}\n{end}\n"
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    done = f"{sum(r.ok for r in results)} of {len(results)} runs of cells OK"
    when = f"As run on {datetime.now(UTC):%Y-%m-%d} on {os.cpu_count()} cores, paused for {pause_s:g} s: {done}."
    if missing := [str(cell) for cell in CELLS if str(cell) not in {r.cell for r in results}]:
        when += f" Not run: {', '.join(missing)}."
    file.write_text(f"{head}{begin}\n\n{when}\n\n{_markdown(results)}\n\n{end}{tail}")


def _table(results: list[Result]) -> Table:
    table = Table(*COLUMNS, title="fault matrix", title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for result in results:
        table.add_row(*result.row(), style=None if result.ok else "red")
    return table


def _line(result: Result) -> str:
    counts = f"{result.confirmed:,} confirmed, {result.lost} lost, {result.swapped} swapped, {result.repeated} repeated"
    healed = "-" if result.healed_s is None else f"{result.healed_s:.1f} s"
    text = f"{'OK  ' if result.ok else 'FAIL'} {result.cell} ({result.victim}) seed {result.seed}: {counts},"
    text += f" audit {result.audit}, healed in {healed}, {result.seconds:.0f} s in all"
    return "\n     ".join(
        [text, *result.problems, *(f"slow: {one}" for one in result.slow), *(f"note: {r}" for r in result.restarted)]
    )


def main() -> None:
    """Parse the command line and run; exits with 1 if a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix", description=__doc__)
    parser.add_argument("--cells", action="append", metavar="PATTERN", help="like 'kill:gateway:*'; may be repeated")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 1 to N for each cell (default: 1)")
    parser.add_argument("--first-seed", type=int, default=1, metavar="N", help="begin with this one")
    parser.add_argument("--pause", type=float, default=PAUSE_S, metavar="SECONDS", help="of a SIGSTOP (default: 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, beside those it has already")
    parser.add_argument("--resume", action="store_true", help="leave out what is in the --json file and was OK")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table into this document")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of cells that failed")
    options = parser.parse_args()
    # Handle it like Ctrl-C: the stack ends with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    before = _load(options.json) if options.json is not None else []
    finished = {(r.seed, r.cell) for r in before if r.ok} if options.resume else set()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cells = _selected(options.cells or ["*"])
    work = [(seed, cell) for seed in seeds for cell in cells if (seed, str(cell)) not in finished]
    results: list[Result] = []
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(work))

        def stage(text: str) -> None:
            progress.update(task, description=text)

        def done(result: Result) -> None:
            results.append(result)
            progress.advance(task)
            console.print(_line(result), highlight=False, markup=False, soft_wrap=True)
            if not result.ok and len(results) < len(work):
                console.print("the next cell gets a new stack", highlight=False)
            merged = _merge(before, results)
            if options.json is not None:
                options.json.write_text(json.dumps([asdict(r) for r in merged], indent=1) + "\n")
            if options.markdown is not None:
                _write_markdown(options.markdown, merged, options.pause)

        asyncio.run(run(work, options.pause, stage, done, options.logs))
    out = Console()
    out.print(_table(results), width=max(out.width, TABLE_WIDTH))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
