"""The CPU time of a message in two checkouts, in pairs: ``python -m bench.cpu_pairs A_DIR B_DIR``.

Each run starts the stack of one checkout on an empty folder, history included, and sends isolated messages: each from
another of 200 connected users to a random one of them. The runs come in the order A B B A A B B A, so a machine that
gets slower or faster by the hour does it to both; the ratios are those of the two runs of a pair.

This file measures both checkouts, with the packages of each: it also works on commits that do not have it. A checkout
needs a virtual environment of its own, made by ``make setup .venv/bench.stamp``.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table

from bench.measure import CLIENT, cpu, machine

# What needs the packages of the benchmark is imported where it is used: the tests of the arithmetic do without.
if TYPE_CHECKING:
    from bench.links import Link
    from bench.systems.connect_chat import ConnectChat

USERS: Final = 200
WARM_SECONDS: Final = 10.0
START_SECONDS: Final = 120.0
SETTLE_SECONDS: Final = 60.0
THROUGHPUT_SECONDS: Final = 180.0
QUIET: Final = 0.1
"""The share of a core below which history and its database have written everything."""
WARM_MESSAGES: Final = 10_000
CONFIDENCE: Final = 0.95
ALL: Final = "all servers"

Run = dict[str, Any]


class Ratio(NamedTuple):
    """An estimate of B / A and its confidence interval; without the latter where there are too few pairs."""

    estimate: float
    interval: tuple[float, float] | None


# One run.


def switches(processes: Mapping[str, int]) -> dict[str, dict[int, int]]:
    """Return the context switches so far of each thread, by the name of the process and the thread's id."""
    found: dict[str, dict[int, int]] = {}
    for name, pid in processes.items():
        with suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                # A thread may end meanwhile.
                with suppress(OSError):
                    status = (task / "status").read_text()
                    found.setdefault(name, {})[int(task.name)] = switches_of(status)
    return found


def switches_of(status: str) -> int:
    """Return the context switches of a thread, from the text of its ``/proc/<pid>/task/<tid>/status``."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields["voluntary_ctxt_switches"]) + int(fields["nonvoluntary_ctxt_switches"])


def a_message(
    step: Mapping[str, Any], before: Mapping[str, Mapping[int, int]], after: Mapping[str, Mapping[int, int]]
) -> Run:
    """Return what a message costs, from the figures of ``paced`` and the context switches around it."""
    messages = step["messages"]
    used = {name: 1000 * seconds / messages for name, seconds in step["cpu"].items() if name != CLIENT}
    switched = {
        name: sum(count - before.get(name, {}).get(thread, 0) for thread, count in threads.items()) / messages
        for name, threads in after.items()
    }
    return {
        "cpu_ms": _with_sum(used),
        "switches": _with_sum(switched),
        "p50": step["p50"],
        "p99": step["p99"],
        "messages": messages,
        "seconds": step["seconds"],
    }


def _with_sum(values: Mapping[str, float]) -> dict[str, float]:
    # Sorted: processes come in the order in which they were ready.
    return {**dict(sorted(values.items())), ALL: sum(values.values())}


class _Crowd:
    """Connected users who write to each other."""

    def __init__(self, system: ConnectChat, links: Mapping[str, Link]) -> None:
        self._system = system
        self._users, self._connections = list(links), list(links.values())
        self._sent = 0

    async def send(self, rate: int, seconds: float) -> Run:
        """Send isolated messages at a rate, and return what one costs."""
        from bench.links import body
        from bench.workloads import SIZE, paced

        total, first = int(rate * seconds), self._sent
        self._sent += total
        order = random.sample(self._connections, len(self._connections))
        frames = [
            order[n % len(order)].frame(random.choice(self._users), first + n, body(n, SIZE)) for n in range(total)
        ]
        before = switches(self._system.processes())
        step = await paced(
            self._system, seconds, rate, lambda n: order[n % len(order)].write(frames[n]), self._connections
        )
        return a_message(step, before, switches(self._system.processes()))

    def close(self) -> None:
        """Close all connections."""
        for link in self._connections:
            link.close()


async def settle(system: ConnectChat) -> None:
    """Wait until history has written what was sent: it is the one that falls behind, and would be measured later."""
    behind = {name: pid for name, pid in system.processes().items() if name in ("history", "dynamodb")}
    async with asyncio.timeout(SETTLE_SECONDS):
        while True:
            before = cpu(behind)
            await asyncio.sleep(1)
            if sum(cpu(behind).values()) - sum(before.values()) < QUIET:
                return


async def measure(rates: Sequence[int], seconds: float, throughput: bool) -> Run:
    """Return the figures of one run of the checkout in the current folder."""
    from bench.systems import HERE
    from bench.systems.connect_chat import ConnectChat
    from bench.workloads import crowd

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    folder = HERE / "cpu_pairs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    system = ConnectChat(folder)
    found: Run = {"version": system.version(), "rates": {}}
    try:
        async with asyncio.timeout(START_SECONDS):
            await system.start()
            await system.start_service("history")
            users = _Crowd(system, await crowd(system, USERS))
            # A JVM interprets its first thousands of records.
            await users.send(max(rates), WARM_SECONDS)
        for rate in rates:
            await settle(system)
            found["rates"][str(rate)] = await users.send(rate, seconds)
        users.close()
        if throughput:
            async with asyncio.timeout(THROUGHPUT_SECONDS):
                found["throughput"] = await _throughput(system)
    finally:
        await system.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return found


async def _throughput(system: ConnectChat) -> dict[str, float]:
    from bench.scale import Scale
    from bench.workloads import drain, online, store

    # As in the other benchmarks: it would be DynamoDB Local that is measured.
    system.stop_service("history")
    found = {}
    for name, workload in (("store", store), ("drain", drain), ("online", online)):
        await workload(system, Scale(messages=WARM_MESSAGES))
        found[name] = (await workload(system, Scale()))["value"]
    return found


# All runs.


def order(pairs: int) -> str:
    """Return the order of the runs, as in ``ABBAABBA``."""
    return "".join("BA" if pair % 2 else "AB" for pair in range(pairs))


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Return the estimate of Hodges and Lehmann of B / A with the exact interval of Wilcoxon's signed ranks.

    It is the median of the geometric means of any two ratios: one run in which the machine was busy with something
    else hardly moves it. An interval of 95 % takes 6 pairs.
    """
    logs = [math.log(b / a) for a, b in pairs]
    means = sorted((one + other) / 2 for n, one in enumerate(logs) for other in logs[n:])
    tail = _tail(len(logs))
    interval = (math.exp(means[tail - 1]), math.exp(means[-tail])) if tail else None
    return Ratio(math.exp(statistics.median(means)), interval)


def _tail(n: int) -> int:
    """Return which of the sorted means the interval begins with, counted from 1; 0 if none is low enough."""
    # The number of ways to get each sum from some of the ranks 1 to n.
    ways = [1]
    for rank in range(1, n + 1):
        ways = [
            (ways[total] if total < len(ways) else 0) + (ways[total - rank] if total >= rank else 0)
            for total in range(len(ways) + rank)
        ]
    tail, below = 0, 0
    while (below := below + ways[tail]) / 2**n <= (1 - CONFIDENCE) / 2:
        tail += 1
    return tail


def figures(run: Run) -> dict[tuple[str, str], float]:
    """Return all figures of a run, by work and name."""
    found: dict[tuple[str, str], float] = {}
    for rate, step in run["rates"].items():
        work = f"{rate}/s"
        found |= {(work, f"CPU, ms: {name}"): ms for name, ms in step["cpu_ms"].items()}
        found |= {(work, f"context switches: {name}"): count for name, count in step["switches"].items()}
        found |= {(work, f"latency, ms: {name}"): step[name] for name in ("p50", "p99")}
    return found | {(name, "messages/s"): rate for name, rate in run.get("throughput", {}).items()}


def table(pairs: Sequence[tuple[Run, Run]]) -> Table:
    """Return a table with a row for each figure: a message's, but for rates."""
    found = Table("work", "a message", "A", "B", "B / A", "95 % interval", title=f"medians; pairs: {len(pairs)}")
    sides = [(figures(a), figures(b)) for a, b in pairs]
    for work, name in sides[0][0] if sides else ():
        values = [(a.get((work, name), 0.0), b.get((work, name), 0.0)) for a, b in sides]
        form = ",.0f" if name == "messages/s" else ",.3g"
        cells = [format(statistics.median(side), form) for side in zip(*values, strict=True)]
        # What took less than a tick of the kernel's clock has no ratio.
        if all(a > 0 and b > 0 for a, b in values):
            estimate, interval = ratio(values)
            cells += [f"{estimate:.3f}", "-" if interval is None else f"{interval[0]:.3f} - {interval[1]:.3f}"]
        found.add_row(work, name, *cells)
    return found


def paired(runs: Sequence[tuple[str, Run | None]]) -> list[tuple[Run, Run]]:
    """Return the pairs of A and B of which both runs were measured."""
    found = []
    for two in zip(runs[::2], runs[1::2], strict=True):
        sides = dict(two)
        if (a := sides["A"]) is not None and (b := sides["B"]) is not None:
            found.append((a, b))
    return found


def run_in(checkout: Path, arguments: Sequence[str]) -> Run | None:
    """Return the figures of a run of a checkout, or ``None`` when it failed; what failed is on stderr."""
    # With -P the path begins with the checkout, and not with the folder of this file.
    command = [str(checkout / ".venv/bin/python"), "-P", str(Path(__file__).resolve()), "--one", "--json", "-"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run([*command, *arguments], cwd=checkout, env=environment, stdout=subprocess.PIPE)
    found: Run | None = msgspec.json.decode(done.stdout) if done.returncode == 0 else None
    return found


def summary(run: Run | None) -> str:
    """Return a run in a line."""
    if run is None:
        return "failed, its pair is left out"
    steps = [
        f"{rate}/s {step['cpu_ms'][ALL]:.2f} ms, p50 {step['p50']:.1f}, p99 {step['p99']:.1f} ms"
        for rate, step in run["rates"].items()
    ]
    rates = [f"{name} {rate:,.0f}/s" for name, rate in run.get("throughput", {}).items()]
    return "; ".join([run["version"], *steps, *rates])


def save(path: Path, value: Any) -> None:
    """Write JSON into a file, or to stdout for ``-``."""
    with click.open_file(str(path), "w") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def _numbers(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise click.BadParameter(f"{text!r} is not a list of numbers with commas between", context, parameter)
    return found


@click.command(help=__doc__)
@click.argument(
    "checkouts",
    nargs=-1,
    metavar="A_DIR B_DIR",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
)
@click.option("--pairs", type=click.IntRange(1, 100), default=8, show_default=True)
@click.option("--rates", default="50,500", show_default=True, callback=_numbers, help="Messages a second.")
@click.option("--seconds", type=click.FloatRange(1), default=15.0, show_default=True, help="The time of each rate.")
@click.option("--throughput", is_flag=True, help="Also measure store, drain and online, once a run.")
@click.option("--one", is_flag=True, help="Measure the checkout in the current folder, once; prints JSON only.")
@click.option("--json", "path", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path), help="For all runs.")
def main(
    checkouts: tuple[Path, ...],
    pairs: int,
    rates: list[int],
    seconds: float,
    throughput: bool,
    one: bool,
    path: Path | None,
) -> None:
    """Measure all pairs and print a table."""
    if one:
        save(path or Path("-"), uvloop.run(measure(rates, seconds, throughput)))
        return
    if len(checkouts) != 2:
        raise click.UsageError("name two checkouts: A_DIR B_DIR")
    for checkout in checkouts:
        if not (checkout / ".venv/bin/python").exists():
            raise click.UsageError(f"{checkout} has no virtual environment: make -C {checkout} setup .venv/bench.stamp")
    arguments = ["--rates", ",".join(map(str, rates)), "--seconds", f"{seconds:g}"]
    arguments += ["--throughput"] if throughput else []
    runs: list[tuple[str, Run | None]] = []
    for number, side in enumerate(order(pairs), 1):
        click.echo(f"run {number} of {2 * pairs}, {side}: ", err=True, nl=False)
        runs.append((side, run_in(checkouts["AB".index(side)], arguments)))
        click.echo(summary(runs[-1][1]), err=True)
        if path is not None:
            save(path, {"machine": machine(), "runs": runs})
    found = paired(runs)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table(found))
    if len(found) < pairs:
        sys.exit(f"{pairs - len(found)} of {pairs} pairs failed")


if __name__ == "__main__":
    main()
