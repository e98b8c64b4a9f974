"""The plots of ``docs/benchmarks.md`` as SVG."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from bench.figures import PERCENTILES, Results, cpu_by_process, figures

COLORS = {"connect_chat": "#c2410c", "mosquitto": "#2563eb", "nats": "#0f766e", "ejabberd": "#7c3aed"}
PROCESSES = {
    "gateway": "#16a34a",
    "messaging": "#f59e0b",
    "notification": "#fcd34d",
    "history": "#a3a3a3",
    "kafka": "#1e3a8a",
    "redis": "#dc2626",
    "dynamodb": "#86198f",
    "client": "#d4d4d8",
}
RATES = ("store", "store_arrays", "store_many", "drain", "storm", "online", "mixed")
CPU = ("store", "store_many", "drain", "storm", "online", "latency_2000")
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "legend.frameon": False,
    # The same results make the same file.
    "svg.hashsalt": "connect-chat",
    "svg.fonttype": "path",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Write all plots into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: dict[str, Callable[[Results], Any]] = {
        "rates": _rates,
        "latency": _latency,
        "inbox": _inbox,
        "cpu": _cpu,
    }
    written = []
    with mpl.rc_context(STYLE):
        for name, plot in plots.items():
            figure = plot(results)
            path = folder / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)
            written.append(path)
    return written


def _rates(results: Results) -> Any:
    workloads = [name for name in RATES if results["cells"].get(name)]
    systems = list(results["versions"])
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.75 * len(workloads)))
    height = 0.8 / len(systems)
    for place, system in enumerate(systems):
        for row, workload in enumerate(workloads):
            values = [value / 1000 for value in figures(results, workload, system)]
            if not values:
                continue
            middle, y = statistics.median(values), row + (place - (len(systems) - 1) / 2) * height
            axes.barh(y, middle, height * 0.92, color=COLORS[system])
            axes.plot([min(values), max(values)], [y, y], color="black", linewidth=0.8)
            axes.annotate(f" {middle:.3g}", (max(values), y), va="center", fontsize=7)
    axes.set_yticks(range(len(workloads)), [_short(results["workloads"][name]["title"]) for name in workloads])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("thousand messages a second, median; the line is from the smallest to the largest round")
    _legend(axes, results, systems, "lower right")
    return figure


def _latency(results: Results) -> Any:
    workloads = [name for name in results["workloads"] if name.startswith("latency_")]
    figure, grid = plt.subplots(1, max(1, len(workloads)), figsize=(8, 3.1), sharey=True, squeeze=False)
    systems = list(results["versions"])
    for axes, workload in zip(grid[0], workloads, strict=False):
        for system in systems:
            found = [figures(results, workload, system, percentile) for percentile in PERCENTILES]
            if not all(found):
                continue
            middle = [statistics.median(values) for values in found]
            axes.plot(PERCENTILES, middle, marker="o", markersize=4, color=COLORS[system])
            axes.fill_between(
                PERCENTILES, [min(v) for v in found], [max(v) for v in found], color=COLORS[system], alpha=0.15
            )
        axes.set_yscale("log")
        axes.set_title(f"{int(workload.removeprefix('latency_')):,} messages a second", fontsize=9)
    grid[0][0].set_ylabel("ms from due to arrived")
    figure.tight_layout()
    handles = [plt.Line2D([], [], color=COLORS[name], linewidth=4) for name in systems]
    names = [results["titles"][name] for name in systems]
    figure.legend(handles, names, loc="lower center", ncols=len(systems), fontsize=8, bbox_to_anchor=(0.5, -0.07))
    return figure


def _inbox(results: Results) -> Any:
    workloads = [name for name in results["workloads"] if name.startswith("inbox_")]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    systems = list(results["versions"])
    for system in systems:
        points = [(int(name.removeprefix("inbox_")), figures(results, name, system)) for name in workloads]
        points = [(size, values) for size, values in points if values]
        if points:
            sizes = [size for size, _ in points]
            axes.plot(sizes, [statistics.median(v) for _, v in points], marker="o", markersize=4, color=COLORS[system])
            axes.fill_between(
                sizes, [min(v) for _, v in points], [max(v) for _, v in points], color=COLORS[system], alpha=0.15
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("messages in the inbox")
    axes.set_ylabel("s until it is empty")
    _legend(axes, results, systems, "upper left")
    return figure


def _cpu(results: Results) -> Any:
    workloads = [name for name in CPU if results["cells"].get(name)]
    systems = list(results["versions"])
    rows = (len(workloads) + 1) // 2
    figure, grid = plt.subplots(max(1, rows), 2, figsize=(9, 0.6 + 1.5 * rows), squeeze=False)
    seen: dict[str, str] = {}
    for axes in grid.flat[len(workloads) :]:
        axes.set_visible(False)
    for axes, workload in zip(grid.flat, workloads, strict=False):
        axes.set_title(
            _short(results["workloads"][workload]["title"]).replace("Latency p99 at", "Online at"), fontsize=9
        )
        for row, system in enumerate(systems):
            left = 0.0
            for process, used in cpu_by_process(results, workload, system).items():
                # A peer is one process, in the color of the system.
                color = PROCESSES.get(process, COLORS[system])
                axes.barh(row, used, 0.8, left=left, color=color)
                if used > 0.02 * left:
                    seen.setdefault(process, color)
                left += used
            if left:
                axes.annotate(f" {left:.3g}", (left, row), va="center", fontsize=7)
        axes.set_yticks(range(len(systems)), [results["titles"][name] for name in systems], fontsize=8)
        axes.margins(x=0.12)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in seen.values()]
    figure.supxlabel("us of CPU a message, all servers and the client; each panel has its own scale", fontsize=9)
    figure.tight_layout()
    figure.legend(handles, seen, loc="lower center", ncols=len(seen) or 1, fontsize=8, bbox_to_anchor=(0.5, -0.05))
    return figure


def _short(title: str) -> str:
    return title.replace("offline users", "users").replace(", single frames", "").replace(", acks included", "")


def _legend(axes: Any, results: Results, systems: list[str], where: str) -> None:
    handles = [plt.Line2D([], [], color=COLORS[name], linewidth=4) for name in systems]
    axes.legend(handles, [results["titles"][name] for name in systems], loc=where, fontsize=8)
