"""Figures taken out of the results of a run, for the goals, the report and the plots."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from bench.measure import CLIENT

Results = Mapping[str, Any]
PERCENTILES = ("p50", "p99", "p99.9")


def figures(results: Results, workload: str, system: str, figure: str = "value") -> list[float]:
    """One figure of each round that has it."""
    rounds = results["cells"].get(workload, {}).get(system, {}).get("rounds", [])
    return [float(found[figure]) for found in rounds if figure in found]


def rounds_of(results: Results, workload: str, system: str) -> list[dict[str, Any]]:
    """The rounds of a workload with a system, as they were measured."""
    rounds: list[dict[str, Any]] = results["cells"].get(workload, {}).get(system, {}).get("rounds", [])
    return rounds


def cpu_by_process(results: Results, workload: str, system: str) -> dict[str, float]:
    """Median microseconds a message of each process, the client among them."""
    rounds = [found for found in rounds_of(results, workload, system) if found.get("cpu") and found.get("messages")]
    names = dict.fromkeys(name for found in rounds for name in found["cpu"])
    ordered = [name for name in names if name != CLIENT] + [CLIENT]
    return {
        name: statistics.median(1e6 * found["cpu"].get(name, 0.0) / found["messages"] for found in rounds)
        for name in ordered
        if rounds
    }
