"""Results of trials, as files, lines and tables."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from docker.local.layout import ROOT
from docker.local.temporary_stack import Stack
from tests.faults.trial import Result

TABLE_WIDTH = 120
CODE = ("chat_streams", "clients", "docker", "gateway", "tables", "tests/faults")
"""The folders whose code a result depends on."""

COLUMNS = ("cell", "seed", "confirmed", "lost", "swapped", "repeated", "missed", "audit", "away s", "healed s", "")


def code_version() -> str:
    """Return the last commit that changed the code, with a "+" if it is changed in the working tree; "" without git."""
    try:
        commit = _git("log", "-1", "--format=%h", "--", *CODE)
        return commit + ("+" if _git("status", "--porcelain", "--", *CODE) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def save(file: Path, results: Sequence[Result]) -> None:
    """Write results; who is killed meanwhile leaves the file of before."""
    unfinished = file.with_name(f"{file.name}.unfinished")
    unfinished.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    unfinished.replace(file)


def load(file: Path | None) -> list[Result]:
    """Return the results in a file; none where there is no file."""
    return [Result(**values) for values in json.loads(file.read_text())] if file is not None and file.exists() else []


def keep_logs(stack: Stack, result: Result, folder: Path) -> None:
    """Copy the logs of a stack into a folder of the trial, and say so in its result."""
    target = folder / f"{re.sub('[^a-z0-9]+', '-', result.cell)}-{result.seed}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(stack.layout.logs, target)
    result.problems.append(f"logs: {target}")


def table_of(title: str, results: Sequence[Result]) -> Table:
    """Return a table for the terminal."""
    table = Table(*COLUMNS, title=title, title_justify="left")
    for column in table.columns:
        column.no_wrap = True
    for result in results:
        table.add_row(*result.row(), style=None if result.ok else "red")
    return table


def print_table(table: Table) -> None:
    """Print a table, wide enough for its rows also where the output is no terminal."""
    Console(width=max(Console().width, TABLE_WIDTH)).print(table)


def line_of(result: Result) -> str:
    """Return a line, with further ones for what went wrong."""
    counts = f"{result.confirmed:,} confirmed, {result.lost} lost, {result.swapped} swapped, {result.repeated} repeated"
    if result.missed:
        counts += f", {result.missed} missed and told"
    healed = "-" if result.healed_s is None else f"{result.healed_s:.1f} s"
    text = f"{'OK  ' if result.ok else 'FAIL'} {result.cell} ({result.victim}) seed {result.seed}: {counts},"
    text += f" audit {result.audit}, healed in {healed}, {result.seconds:.0f} s in all"
    return "\n     ".join(
        [text, *result.problems, *(f"slow: {one}" for one in result.slow), *(f"note: {r}" for r in result.restarted)]
    )
