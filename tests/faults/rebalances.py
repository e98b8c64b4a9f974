"""Rebalances, one round after the other, with three workers of each app under load."""

from __future__ import annotations

import argparse
import random
import statistics
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.faults.proxy import WORKERS
from tests.faults.report import print_table
from tests.faults.runner import Plan, add_options, options_of, show
from tests.faults.stacks import LargerStack
from tests.faults.trial import Fault, Result, Trial

ROUNDS = 20
INSTANCES = 3
KINDS = ("kill", "pause", "rolling restart")
BEYOND_SESSION_S = 4.0
"""Seconds of a pause beyond the session timeout, so that the others have the partitions when it ends."""


class Round(NamedTuple):
    """One rebalance: its number from 1, the app, the kind, and which of the workers it begins with."""

    number: int
    app: str
    kind: str
    instance: int

    def __str__(self) -> str:
        return f"{self.number:02} {self.kind}:{self.app}"


def rounds_of(seed: int, count: int) -> list[Round]:
    """Return the rounds that a seed stands for."""
    rng = random.Random(seed)
    return [Round(n, rng.choice(WORKERS), rng.choice(KINDS), rng.randrange(INSTANCES)) for n in range(1, count + 1)]


class Rebalance(Fault):
    """The rebalance of a round: workers of one app go and come back."""

    def __init__(self, stack: Stack, round_: Round) -> None:
        super().__init__(stack)
        self._round = round_
        names = [round_.app, *(f"{round_.app}-{n}" for n in range(2, INSTANCES + 1))]
        self._names = names[round_.instance :] + names[: round_.instance]
        self.victim = ", ".join(self._names) if round_.kind == "rolling restart" else self._names[0]

    async def happen(self, crowd: Crowd) -> None:
        """Kill or pause one worker, or restart all in turn."""
        first, *_ = self._names
        if self._round.kind == "kill":
            await self.kill(first)
        elif self._round.kind == "pause":
            await self.pause(first, self.stack.settings.session_timeout + BEYOND_SESSION_S)
        else:
            for name in self._names:
                await self.restart(name)


def trial_of(round_: Round, seed: int, stack: Stack) -> Trial:
    """Return the trial of a round."""
    fault = Rebalance(stack, round_)
    return Trial(str(round_), seed, Phase.LIVE, fault, with_history=round_.app == "history")


def new_stack(data: Path) -> LargerStack:
    """Return a stack with three workers of each app."""
    return LargerStack(data, INSTANCES)


def table_of(results: list[Result]) -> Table:
    """Return a table of the rounds, with the median and the maximum of the seconds."""
    table = Table(
        "round", "app", "kind", "confirmed", "away s", "healed s", "", title="rebalances", title_justify="left"
    )
    for result in results:
        name, app = result.cell.split(":")
        number, _, kind = name.partition(" ")
        *_, away, healed, verdict = result.row()
        style = None if result.ok else "red"
        table.add_row(number, app, kind, f"{result.confirmed:,}", away, healed, verdict, style=style)
    times = [result.healed_s for result in results if result.healed_s is not None]
    if times:
        table.add_section()
        table.add_row("", "", "median", "", "", f"{statistics.median(times):.1f}", "")
        table.add_row("", "", "maximum", "", "", f"{max(times):.1f}", "")
    return table


def main() -> None:
    """Parse the command line and run; exits with 1 if a round failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.rebalances", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"number of rounds (default: {ROUNDS})")
    parser.add_argument("--seed", type=int, metavar="N", help="draws the rounds (default: a new one)")
    add_options(parser)
    options = parser.parse_args()
    seed = random.randrange(10_000) if options.seed is None else options.seed
    Console().print(f"seed {seed}")
    work: dict[tuple[str, int], Plan[LargerStack]] = {
        (str(round_), seed): partial(trial_of, round_, seed) for round_ in rounds_of(seed, options.rounds)
    }
    results = show(work, new_stack, options_of(options))
    print_table(table_of(results))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
