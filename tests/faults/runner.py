"""The runs of many trials: one after the other, each result shown and written as soon as it is there."""

from __future__ import annotations

import argparse
import asyncio
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from docker.local.temporary_stack import Stack
from tests.faults.report import code_version, keep_logs, line_of, load, save
from tests.faults.trial import PROMISED, Limits, Result, Stage, Trial, run_trial

S = TypeVar("S", bound=Stack)

Plan = Callable[[S], Trial]
"""Makes a trial for the stack it is given."""


class Options(NamedTuple):
    """The options that all command lines have."""

    json: Path | None = None
    resume: bool = False
    logs: Path | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--json``, ``--resume`` and ``--logs``."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each result, beside those it has already")
    parser.add_argument(
        "--resume", action="store_true", help="leave out what is OK in the --json file, with this commit and options"
    )
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep the logs of what failed")


def options_of(parsed: argparse.Namespace) -> Options:
    """Return the values of what ``add_options`` added."""
    return Options(parsed.json, parsed.resume, parsed.logs)


async def run(
    work: Sequence[Plan[S]],
    new_stack: Callable[[Path], S],
    stage: Stage,
    done: Callable[[Result], None],
    logs: Path | None = None,
    limits: Limits = PROMISED,
    own_stacks: bool = False,
) -> None:
    """Run trials one after the other, each on the previous one's stack unless that failed.

    Args:
        work: The trials.
        new_stack: Makes a stack with its data in a folder.
        stage: Called with what is being done.
        done: Called with each result.
        logs: The folder for the logs of trials that failed.
        limits: Limits of each trial.
        own_stacks: True to give each trial a stack of its own.
    """
    left = list(work)
    while left:
        stage("starting a stack")
        spoilt = False
        with tempfile.TemporaryDirectory(prefix="chat-faults-", ignore_cleanup_errors=True) as folder:
            async with new_stack(Path(folder) / "stack") as stack:
                while left and not spoilt:
                    trial = left.pop(0)(stack)
                    result = await run_trial(stack, trial, partial(_stage_of, stage, trial.name), limits)
                    if not result.ok and logs is not None:
                        keep_logs(stack, result, logs)
                    spoilt = own_stacks or not result.ok
                    done(result)


def _stage_of(stage: Stage, name: str, text: str) -> None:
    stage(f"{name}: {text}")


def show(
    work: Mapping[tuple[str, int], Plan[S]],
    new_stack: Callable[[Path], S],
    options: Options,
    setting: str = "",
    limits: Limits = PROMISED,
    own_stacks: bool = False,
    on_result: Callable[[list[Result]], None] = lambda _: None,
) -> list[Result]:
    """Run trials with a progress bar and a line for each; returns the results, those of before among them.

    Args:
        work: The trials by name and seed.
        new_stack: Makes a stack with its data in a folder.
        options: From the command line.
        setting: Further options that a result depends on, for ``--resume``.
        limits: Limits of each trial.
        own_stacks: True to give each trial a stack of its own.
        on_result: Called after each trial with all results, those of the file among them.
    """
    # Handle it like Ctrl-C: the stack ends with this process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    console = Console(stderr=True)
    version = code_version()
    found = {(result.cell, result.seed): result for result in load(options.json)}
    if options.resume and version.endswith("+"):
        console.print("the code is not committed as it is: nothing is left out", highlight=False)
    skipped = [
        name
        for name in work
        if options.resume and name in found and found[name].is_ok_for(version, setting) and not version.endswith("+")
    ]
    for name, seed in skipped:
        console.print(f"left out, OK at {version}: {name} seed {seed}", highlight=False, markup=False, soft_wrap=True)
    left = {name: plan for name, plan in work.items() if name not in skipped}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(left))

        def stage(text: str) -> None:
            progress.update(task, description=text)

        def done(result: Result) -> None:
            result.commit, result.setting = version, setting
            found[result.cell, result.seed] = result
            progress.advance(task)
            console.print(line_of(result), highlight=False, markup=False, soft_wrap=True)
            if options.json is not None:
                save(options.json, list(found.values()))
            on_result(list(found.values()))

        asyncio.run(run(list(left.values()), new_stack, stage, done, options.logs, limits, own_stacks))
    return [found[name] for name in work]
