"""The benchmark's command line, ``python -m bench run``, ``report`` and ``show``: see ``docs/benchmarks.md``."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec
import uvloop
from rich.console import Console
from rich.markdown import Markdown

from bench.report import sections, write
from bench.runner import SYSTEMS, Run, screen
from bench.scale import QUICK, Scale
from bench.systems import ROOT
from bench.workloads import WORKLOADS
from chat_streams.runtime.descriptors import raise_limit

RESULTS = ROOT / "bench" / "results"


def _chosen(known: list[str], text: str | None, option: str) -> list[str]:
    if text is None:
        return known
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise click.BadParameter(f"there is no {unknown[0]}; there are {', '.join(known)}", param_hint=option)
    return [name for name in known if name in names]


@click.group()
def main() -> None:
    """Measure Connect Chat beside the brokers people would use instead."""


@main.command()
@click.option("--quick", is_flag=True, help="One round of small sizes: three minutes, for a first look.")
@click.option("--rounds", type=click.IntRange(1, 100), help="5 by default, 1 with --quick.")
@click.option("--systems", help="Some only, with commas between.")
@click.option("--workloads", help="Some only, with commas between.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where the results go.")
def run(quick: bool, rounds: int | None, systems: str | None, workloads: str | None, path: Path | None) -> None:
    """Run the workloads and save the results as JSON."""
    default = [workload.name for workload in WORKLOADS if workload.quick or not quick]
    names = _chosen([w.name for w in WORKLOADS], workloads, "--workloads") if workloads else default
    made = Run(
        _chosen(list(SYSTEMS), systems, "--systems"),
        [workload for workload in WORKLOADS if workload.name in names],
        QUICK if quick else Scale(),
        rounds or (1 if quick else 5),
    )
    # Ten thousand connections need the limit raised, for this process and for each server, which inherits it.
    raise_limit()
    path = path or RESULTS / ("quick.json" if quick else "full.json")
    uvloop.run(made.play(path))
    screen.print(f"the results are in {path}")


@main.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RESULTS / "full.json")
def report(path: Path) -> None:
    """Write docs/benchmarks.md and its plots from results."""
    for written in write(path):
        screen.print(f"wrote {written}")


@main.command()
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RESULTS / "full.json")
def show(path: Path) -> None:
    """Print the tables of results on the terminal."""
    Console(width=160).print(Markdown(sections(msgspec.json.decode(path.read_bytes()))))


if __name__ == "__main__":
    main()
