"""From the results of a run: the tables of ``docs/benchmarks.md``, between its marks, and the plots beside it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bench.figures import PERCENTILES, Results, figures, rounds_of
from bench.goals import OURS, Outcome, judge

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


def write(path: Path, page: Path = PAGE) -> list[Path]:
    """Put the results into the page and draw the plots; returns the files that were written."""
    from bench.plots import draw

    results: Results = msgspec.json.decode(path.read_bytes())
    page.write_text(insert(page.read_text(), sections(results)))
    return [page, *draw(results, page.with_suffix(""))]


def insert(page: str, text: str) -> str:
    """The page with ``text`` between its marks; raises ``ValueError`` where they are missing."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def number(value: float) -> str:
    """Three significant digits or whole: 12,345; 123; 12.3; 0.123."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """The median, and smallest and largest where there is more than one."""
    if not values:
        return "-"
    middle = number(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({number(min(values))} - {number(max(values))})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are numbers."""
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def goals(outcomes: Sequence[Outcome]) -> str:
    """Each goal with what was measured."""
    words = {True: "reached", False: "**not reached**", None: "not measured"}
    peers = {None: "", "mosquitto": " Mosquitto", "nats": " NATS", "ejabberd": " ejabberd"}
    return table(
        ("Work", "Goal", "Measured", ""),
        (
            (
                outcome.goal.work,
                outcome.goal.text + peers[outcome.goal.peer],
                "-" if outcome.found is None else f"{number(outcome.found)} {outcome.goal.unit}",
                words[outcome.reached],
            )
            for outcome in outcomes
        ),
    )


def sections(results: Results) -> str:
    """All that is generated."""
    machine, scale = results["machine"], results["scale"]
    rounds = max((len(c["rounds"]) for found in results["cells"].values() for c in found.values()), default=0)
    versions = ", ".join(f"{results['titles'][name]} {version}" for name, version in results["versions"].items())
    outcomes = judge(results)
    reached = sum(outcome.reached is True for outcome in outcomes)
    parts = [
        f"{results['began'][:10]}, {rounds} round{'s' if rounds != 1 else ''}, {machine['cores']} cores "
        f"({machine['cpu']}), {machine['memory_gib']} GiB, Linux {machine['kernel']}, Python {machine['python']}. "
        f"{versions}. {scale['messages']:,} messages a workload, {scale['users']:,} users, "
        f"{scale['senders']:,} senders.\n",
        f"### Goals\n\n{reached} of {len(outcomes)} reached; ratios are of medians.\n\n{goals(outcomes)}",
        "### Rates\n\nMedian (smallest - largest) of the rounds.\n\n"
        f"{_rates(results)}\n![Rates](benchmarks/rates.svg)\n",
        f"### Latency\n\nIn ms from when a message was due until it arrived.\n\n{_latency(results)}\n"
        "![Latency](benchmarks/latency.svg)\n",
        f"### Isolated senders\n\n{_isolated(results)}",
        f"### Time to empty an inbox\n\nIn seconds.\n\n{_inboxes(results)}\n![Time to empty](benchmarks/inbox.svg)\n",
        "### CPU\n\nMicroseconds a message over all servers of a system; in parentheses the share of one core that the "
        f"client used.\n\n{_cpu(results)}\n![CPU by process](benchmarks/cpu.svg)\n",
        f"### Idle connections, storage, history\n\n{_rest(results)}",
        _failures(results),
    ]
    return "\n".join(part for part in parts if part)


def _systems(results: Results) -> list[str]:
    return list(results["versions"])


def _head(results: Results, *first: str) -> list[str]:
    return [*first, *(results["titles"][name] for name in _systems(results))]


def _rates(results: Results) -> str:
    systems = _systems(results)
    peers = [name for name in systems if name != OURS]
    rows = []
    for workload, about in results["workloads"].items():
        if about["unit"] != "messages/s" or workload in ("isolated", "history"):
            continue
        values = {name: figures(results, workload, name) for name in systems}
        row = [about["title"], *(spread(values[name]) for name in systems)]
        # Who has no arrays is compared by its single messages.
        for peer in peers:
            theirs = values[peer] or (figures(results, "store", peer) if workload == "store_arrays" else [])
            ours = values.get(OURS, [])
            row.append(f"{statistics.median(ours) / statistics.median(theirs):.2f}" if ours and theirs else "-")
        rows.append(row)
    return table([*_head(results, "Messages a second"), *(f"/ {results['titles'][p]}" for p in peers)], rows)


def _latency(results: Results) -> str:
    rows = []
    for workload in results["workloads"]:
        if workload.startswith("latency_"):
            for percentile in PERCENTILES:
                found = [spread(figures(results, workload, name, percentile)) for name in _systems(results)]
                rows.append([f"{int(workload.removeprefix('latency_')):,}/s, {percentile}", *found])
    return table(_head(results, "ms"), rows)


def _isolated(results: Results) -> str:
    rates: dict[float, dict[str, list[float]]] = {}
    for name, cell in results["cells"].get("isolated", {}).items():
        for found in cell["rounds"]:
            for step in found.get("steps", []):
                if "p99" in step:
                    rates.setdefault(step["rate"], {}).setdefault(name, []).append(step["p99"])
    rows = [[f"{rate:,.0f}/s, p99", *(spread(by.get(n, [])) for n in _systems(results))] for rate, by in rates.items()]
    rows.append(["Sustained, messages/s", *(spread(figures(results, "isolated", n)) for n in _systems(results))])
    return table(_head(results, "ms"), rows)


def _inboxes(results: Results) -> str:
    rows = [
        [f"{int(w.removeprefix('inbox_')):,} messages", *(spread(figures(results, w, n)) for n in _systems(results))]
        for w in results["workloads"]
        if w.startswith("inbox_")
    ]
    return table(_head(results, "s"), rows)


def _cpu(results: Results) -> str:
    rows = []
    for workload, about in results["workloads"].items():
        row = []
        for name in _systems(results):
            used = figures(results, workload, name, "server_cpu_us")
            share = figures(results, workload, name, "client_cpu_share")
            row.append(f"{number(statistics.median(used))} ({statistics.median(share):.0%})" if used and share else "-")
        if any(cell != "-" for cell in row):
            rows.append([about["title"], *row])
    return table(_head(results, "us a message"), rows)


def _rest(results: Results) -> str:
    rows = [
        ["Memory of an idle connection, KiB", *(spread(figures(results, "idle", n)) for n in _systems(results))],
        [
            "Connections accepted a second",
            *(spread(figures(results, "idle", n, "connections_per_s")) for n in _systems(results)),
        ],
    ]
    for title, workload, figure in (
        ("Redis bytes an inbox message (stream and all other keys)", "store", "redis_bytes"),
        ("The same over its JSON", "store", "redis_over_json"),
        ("History, messages a second (DynamoDB Local, in memory)", "history", "value"),
    ):
        found = [spread(figures(results, workload, n, figure)) for n in _systems(results)]
        rows.append([title, *found])
    lags = [f["lag_s"]["median"] for f in rounds_of(results, "history", OURS) if "lag_s" in f]
    rows.append(
        ["History behind `sent`, s, single messages", *(spread(lags if n == OURS else []) for n in _systems(results))]
    )
    return table(_head(results, ""), rows)


def _failures(results: Results) -> str:
    lines = [
        f"- {results['titles'][name]}, {results['workloads'][workload]['title']}: "
        f"{found.get('error') or found['skipped']}"
        for workload, systems in results["cells"].items()
        for name, cell in systems.items()
        for found in cell["rounds"]
        if "value" not in found
    ]
    return "### Not measured\n\n" + "\n".join(dict.fromkeys(lines)) + "\n" if lines else ""
