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
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from chat_streams.kafka.names import partition_of
from clients.python.client import Client
from clients.python.errors import ConnectionClosed, RequestRefused
from docker.local.layout import StackError
from docker.local.part import Running
from docker.local.probes import Received, user
from tests.faults.crowd import Crowd, Phase
from tests.faults.proxy import WORKERS, CuttableStack, Proxy
from tests.integration.commands import call

KINDS = ("kill", "pause", "cut")
PARTS = ("gateway", "messaging", "notification", "history", "kafka", "redis", "dynamodb")
PAUSE_S = 30.0
CUT_S = 8.0
"""Longer than a worker's session with Kafka lasts."""
HEALED_S = 10.0
"""At most, from the part's return until messages pass again on all partitions."""
WARM_MESSAGES = 500
STORED_MESSAGES = 2_000
AFTER_MESSAGES = 500
PROBE_S = 60.0
PROBE_PAUSE_S = 0.2
LATE_S = 1.0
QUIET_S = 4.0
"""A worker that comes back is given its partitions a few seconds later, and that must not count as healed either."""
DRAIN_S = 60.0
CELL_S = 420.0
AUDIT_S = 120.0
DOCUMENT_MARKS = "<!-- table -->", "<!-- end of table -->"
LOG_LINES = 5
TABLE_WIDTH = 120

Stage = Callable[[str], None]


class Limits(NamedTuple):
    """Seconds that a cell may take for its parts."""

    late: float = LATE_S
    """A message that takes longer shows that it is not healed yet."""
    quiet: float = QUIET_S
    probe: float = PROBE_S
    drain: float = DRAIN_S


PROMISED = Limits()


class Cell(NamedTuple):
    """One fault."""

    kind: str
    part: str
    phase: Phase

    def __str__(self) -> str:
        return f"{self.kind}:{self.part}:{self.phase}"


CELLS = [Cell(kind, part, phase) for part, kind, phase in itertools.product(PARTS, KINDS, Phase)]


@dataclass
class Result:
    """What a cell showed. Seconds are None where it did not come so far."""

    cell: str
    seed: int
    victim: str = ""
    confirmed: int = 0
    sent_again: int = 0
    lost: int = 0
    swapped: int = 0
    repeated: int = 0
    audit: str = "-"
    away_s: float | None = None
    """From the beginning of the fault until the part was back: ready, going on, reachable."""
    healed_s: float | None = None
    """From then until messages passed on all partitions, none of them later than a second."""
    seconds: float = 0.0
    slow: list[str] = field(default_factory=list)
    """Messages that passed late, where it did not heal within ``HEALED_S``."""
    problems: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    """Parts that ended by themselves, and were started again."""

    @property
    def kept(self) -> bool:
        """Whether the promise was kept, and it healed."""
        wrong = self.lost or self.swapped or self.repeated or self.problems or self.restarted
        return not wrong and self.audit == "clean" and self.healed_s is not None

    @property
    def ok(self) -> bool:
        """Whether it was kept, and it healed in time."""
        return self.kept and self.healed_s is not None and self.healed_s <= HEALED_S

    def row(self) -> list[str]:
        """The cells of a table."""
        counts = (self.confirmed, self.lost, self.swapped, self.repeated)
        times = ("-" if s is None else f"{s:.1f}" for s in (self.away_s, self.healed_s))
        verdict = "OK" if self.ok else "**FAIL**"
        if self.restarted:
            verdict += f", {len(self.restarted)} ended by themselves"
        return [self.cell, str(self.seed), *(f"{n:,}" for n in counts), self.audit, *times, verdict]


COLUMNS = ("cell", "seed", "confirmed", "lost", "swapped", "repeated", "audit", "away s", "healed s", "")


# The faults


class Fault:
    """One part of a stack, and what is done to it."""

    def __init__(self, stack: CuttableStack, cell: Cell, rng: random.Random, pause_s: float) -> None:
        names = [cell.part] if cell.part in ("kafka", "redis", "dynamodb") else [cell.part, f"{cell.part}-2"]
        self.victim = rng.choice(names)
        self.away: set[str] = set()
        """Whom nobody else must start."""
        self._stack = stack
        self._cell = cell
        self._pause_s = pause_s

    async def happen(self) -> None:
        """Do it; returns when the part is back."""
        await {"kill": self._kill, "pause": self._pause, "cut": self._cut}[self._cell.kind]()

    async def _kill(self) -> None:
        running = self._stack.running[self.victim]
        self.away.add(self.victim)
        running.kill()
        await self._stack.start(running.part)
        self.away.discard(self.victim)

    async def _pause(self) -> None:
        running = self._stack.running[self.victim]
        running.pause()
        try:
            await asyncio.sleep(self._pause_s)
        finally:
            running.resume()

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
        stack, victim = self._stack, self.victim
        if victim in stack.gateway_proxies:
            return [stack.gateway_proxies[victim]]
        if self._cell.part in WORKERS:
            return [stack.kafka_proxies[victim]]
        if victim == "kafka":
            return list(stack.kafka_proxies.values())
        return [stack.redis_proxy if victim == "redis" else stack.dynamodb_proxy]


async def _supervise(stack: CuttableStack, away: set[str], restarted: list[str]) -> None:
    """Start again what ends by itself, as a supervisor does."""
    while True:
        for name, running in list(stack.running.items()):
            if name not in away and not running.alive:
                restarted.append(f"{name} ended with {running.process.returncode}: {_last_words(running)}")
                await stack.start(running.part)
        await asyncio.sleep(0.2)


def _last_words(running: Running) -> str:
    return " | ".join(line.strip() for line in running.part.last_lines().splitlines()[-LOG_LINES:])


# The probe


class Probe:
    """Two new users for each partition, between whom one message after the other has to pass."""

    def __init__(self, stack: CuttableStack, with_history: bool, limits: Limits) -> None:
        self._stack = stack
        self._limits = limits
        self._with_history = with_history
        self._passed: set[str] = set()
        self._waiting: dict[str, float] = {}
        """By recipient, since when its message is under way."""
        self.slow: list[tuple[float, str, float]] = []
        """When the first message to somebody arrived, or a late one, and the seconds it took."""
        self._healed = 0.0
        """When the first message of the last pair arrived, or the last late one."""

    async def healed(self) -> float:
        """Return, once all has been well for a while, since when (``time.monotonic``); raises ``TimeoutError``."""
        partitions = self._stack.settings.partitions
        recipients: dict[int, str] = {}
        while len(recipients) < partitions:
            bob = user("probe")
            recipients.setdefault(partition_of(bob, partitions), bob)
        urls = itertools.cycle(itertools.product(self._stack.urls, self._stack.urls))
        async with asyncio.timeout(self._limits.probe):
            pairs = [asyncio.create_task(self._pair(bob, *next(urls))) for bob in recipients.values()]
            try:
                while not self._quiet(partitions):
                    await asyncio.sleep(0.05)
                    for pair in pairs:
                        if pair.done():
                            pair.result()
            finally:
                for pair in pairs:
                    pair.cancel()
                await asyncio.gather(*pairs, return_exceptions=True)
        return self._healed

    def _quiet(self, partitions: int) -> bool:
        now = time.monotonic()
        late = any(now - since > self._limits.late for since in self._waiting.values())
        return len(self._passed) == partitions and not late and now - self._healed > self._limits.quiet

    async def _pair(self, bob: str, near: str, far: str) -> None:
        stack = self._stack
        alice = user("probe-sender")
        received = Received()
        while True:
            try:
                async with (
                    Client(far, stack.token(bob), "phone", on_messages=received, timeout_s=self._limits.probe),
                    Client(near, stack.token(alice), "phone", timeout_s=self._limits.probe) as client,
                ):
                    for count in itertools.count(1):
                        begin = self._waiting[bob] = time.monotonic()
                        await client.send(bob, count, id=f"probe-{count}")
                        await received.wait(count)
                        while self._with_history and bob not in self._passed and not await _in_history(client, bob):
                            await asyncio.sleep(0.05)
                        del self._waiting[bob]
                        now = time.monotonic()
                        if bob not in self._passed or now - begin > self._limits.late:
                            self._healed = now
                            self.slow.append((now, bob, now - begin))
                        self._passed.add(bob)
                        await asyncio.sleep(PROBE_PAUSE_S)
            except ConnectionClosed as error:
                if error.code != "unreachable":
                    raise
                await asyncio.sleep(0.05)


async def _in_history(client: Client, bob: str) -> bool:
    try:
        return bool((await client.history(bob)).messages)
    except RequestRefused as error:
        if not error.retry:
            raise
        return False


# The audit


async def audit(stack: CuttableStack) -> tuple[str, list[str]]:
    """Run the command over everything in the stack; returns a word and the findings."""
    done = await call(stack, ["audit", "--json"], within_s=AUDIT_S)
    if done.code == 0:
        return "clean", []
    if done.code != 1:
        return "error", [f"audit ended with {done.code}: {done.err[-1000:]}"]
    report = done.json
    names = ("none", "two", "other_findings", "in_flight", "acknowledgements_in_flight")
    counts = {name: report[name] for name in names if report[name]}
    if report["history"]["missing"]:
        counts["missing in history"] = report["history"]["missing"]
    return "unclean", [f"audit: {counts}, first {report['findings'][:2]}"]


# A cell


async def run_cell(
    stack: CuttableStack, cell: Cell, seed: int, pause_s: float, stage: Stage, limits: Limits = PROMISED
) -> Result:
    """Run one cell on a stack that is well; never raises for what the stack does."""
    result = Result(str(cell), seed)
    started = time.monotonic()
    supervisor: asyncio.Task[None] | None = None
    crowd = Crowd(stack, stack.urls, cell.phase, f"{seed} {cell}")
    try:
        stack.check()
        async with asyncio.timeout(CELL_S):
            fault = Fault(stack, cell, random.Random(f"{seed} {cell} victim"), pause_s)
            result.victim = fault.victim
            supervisor = asyncio.create_task(_supervise(stack, fault.away, result.restarted))
            await _measure(stack, cell, crowd, fault, result, stage, limits)
    except (AssertionError, StackError, TimeoutError, ConnectionClosed, RequestRefused) as error:
        result.problems.append(f"{type(error).__name__}: {error}"[:1000])
    finally:
        await crowd.cancel()
        if supervisor is not None:
            if supervisor.done() and (died := supervisor.exception()) is not None:
                result.problems.append(f"not started again: {died}"[:1000])
            supervisor.cancel()
    result.seconds = time.monotonic() - started
    return result


async def _measure(
    stack: CuttableStack, cell: Cell, crowd: Crowd, fault: Fault, result: Result, stage: Stage, limits: Limits
) -> None:
    stage("devices come once")
    await crowd.prepare()
    crowd.start()
    stage("load")
    await crowd.until_confirmed(STORED_MESSAGES if cell.phase is Phase.DRAINING else WARM_MESSAGES)
    if cell.phase is Phase.DRAINING:
        crowd.come()
    stage(f"fault on {fault.victim}")
    begin = time.monotonic()
    await fault.happen()
    back = time.monotonic()
    result.away_s = round(back - begin, 2)
    stage("healing")
    probe = Probe(stack, cell.part in ("history", "dynamodb"), limits)
    try:
        healed = await probe.healed()
        result.healed_s = round(healed - back, 2)
    except (TimeoutError, AssertionError) as error:
        result.problems.append(f"messages did not pass in time in {limits.probe:g} s: {error}")
    if result.healed_s is None or result.healed_s > HEALED_S:
        partitions = stack.settings.partitions
        result.slow = [
            f"{took:.1f} s to partition {partition_of(to, partitions)} at {at - back:.1f} s"
            for at, to, took in probe.slow
        ]
    stage("load after the fault")
    await crowd.until_confirmed(crowd.confirmed + AFTER_MESSAGES)
    outcome = await crowd.finish(limits.drain, stage)
    result.confirmed, result.sent_again = outcome.confirmed, outcome.sent_again
    result.lost, result.swapped, result.repeated = outcome.lost, outcome.swapped, outcome.repeated
    result.problems += outcome.problems
    stage("audit")
    result.audit, findings = await audit(stack)
    result.problems += findings


# The run


def _selected(patterns: list[str]) -> list[Cell]:
    found = [cell for cell in CELLS if any(fnmatch.fnmatch(str(cell), pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(f"no cell is named like {' or '.join(patterns)}: {CELLS[0]}, ...")
    return found


async def run(
    work: Iterable[tuple[int, Cell]], pause_s: float, stage: Stage, done: Callable[[Result], None], keep: Path | None
) -> None:
    """Run cells one after the other, each on the stack of the one before unless that failed."""
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
    # As Ctrl-C: the stack ends with this process.
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
