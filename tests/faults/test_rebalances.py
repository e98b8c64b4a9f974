"""Rebalances drawn by a seed, one after the other, with three workers of each app under load."""

from __future__ import annotations

import secrets
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.proxy import WORKERS
from tests.faults.rebalances import KINDS, ROUNDS, new_stack, rounds_of, table_of, trial_of
from tests.faults.runner import run
from tests.faults.trial import Result


def test_a_seed_stands_for_its_rounds_and_reaches_every_app_and_kind() -> None:
    rounds = rounds_of(1, ROUNDS)
    assert rounds == rounds_of(1, ROUNDS)
    assert rounds[:5] == rounds_of(1, 5)
    assert {(r.app, r.kind) for r in rounds_of(1, 200)} == {(app, kind) for app in WORKERS for kind in KINDS}


def test_the_table_has_a_row_for_each_round_with_median_and_maximum() -> None:
    results = [Result(str(round_), 1, audit="clean", healed_s=n) for n, round_ in enumerate(rounds_of(1, 3))]
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table_of(results))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.get().splitlines() if "│" in line]
    assert [row[0] for row in rows] == ["01", "02", "03", "", ""]
    assert [(row[2], row[5]) for row in rows[-2:]] == [("median", "1.0"), ("maximum", "2.0")]


@pytest.mark.long
@pytest.mark.timeout(ROUNDS * 300)
async def test_rebalances_under_load_lose_nothing_and_heal_in_time(tmp_path: Path) -> None:
    # Each result names the seed, which repeats it: ``python -m tests.faults.rebalances --seed``.
    seed = secrets.randbelow(10_000)
    results: list[Result] = []
    work = [partial(trial_of, round_, seed) for round_ in rounds_of(seed, ROUNDS)]
    await run(work, new_stack, print, results.append)
    Console().print(table_of(results))
    assert [result for result in results if not result.ok] == []
