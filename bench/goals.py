"""The goals of the comparison: what each asks of one run's results, and whether it is reached."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.figures import Results, figures

OURS = "connect_chat"


@dataclass(frozen=True)
class Goal:
    """What ``figure`` of a workload has to be: by itself, or over the ``peer``'s in its ``peer_workload``."""

    work: str
    workload: str
    bound: float
    figure: str = "value"
    peer: str | None = None
    peer_workload: str | None = None
    unit: str = "x"
    at_least: bool = True

    @property
    def text(self) -> str:
        """Such as ``>= 2 x Mosquitto``."""
        sign = ">=" if self.at_least else "<="
        return f"{sign} {self.bound:,g} {self.unit}"


@dataclass(frozen=True)
class Outcome:
    """A goal with the median of what was measured; ``None`` where it was not."""

    goal: Goal
    found: float | None

    @property
    def reached(self) -> bool | None:
        """Whether it is."""
        if self.found is None:
            return None
        return self.found >= self.goal.bound if self.goal.at_least else self.found <= self.goal.bound


def _ratio(work: str, workload: str, peer: str, bound: float, peer_workload: str | None = None) -> Goal:
    return Goal(work, workload, bound, peer=peer, peer_workload=peer_workload)


def _most(work: str, workload: str, figure: str, bound: float, unit: str) -> Goal:
    return Goal(work, workload, bound, figure=figure, unit=unit, at_least=False)


GOALS: Sequence[Goal] = (
    _ratio("Store, one offline user, single frames", "store", "mosquitto", 1.5),
    _ratio("Store, one offline user, arrays of 50", "store_arrays", "mosquitto", 2, "store"),
    _ratio("Store, 10,000 offline users", "store_many", "mosquitto", 1),
    _ratio("Drain 50,000, acks included", "drain", "mosquitto", 2),
    _ratio("Reconnect storm, 1,000 x 50", "storm", "mosquitto", 1),
    _ratio("Online, one to one", "online", "mosquitto", 2),
    _ratio("Online, one to one", "online", "ejabberd", 1.5),
    _ratio("Store, one offline user, single frames", "store", "nats", 1),
    _ratio("Store, one offline user, arrays of 50", "store_arrays", "nats", 1, "store"),
    _ratio("Store, 10,000 offline users", "store_many", "nats", 1),
    _ratio("Drain 50,000, acks included", "drain", "nats", 1),
    _ratio("Reconnect storm, 1,000 x 50", "storm", "nats", 1),
    _ratio("Online, one to one", "online", "nats", 1),
    _most("Latency at 50/s, p50", "latency_50", "p50", 4, "ms"),
    _most("Latency at 50/s, p99", "latency_50", "p99", 8, "ms"),
    _most("Latency at 2,000/s, p50", "latency_2000", "p50", 6, "ms"),
    _most("Latency at 2,000/s, p99", "latency_2000", "p99", 15, "ms"),
    Goal("Isolated senders, sustained at p99 <= 50 ms", "isolated", 10_000, unit="messages/s"),
    _most("Server CPU a message, stored (single frames)", "store", "server_cpu_us", 15, "us"),
    _most("Server CPU a message, drained", "drain", "server_cpu_us", 8, "us"),
    _most("Server CPU a message at 2,000/s", "latency_2000", "server_cpu_us", 200, "us"),
    _most("Redis bytes an inbox message over its JSON", "store", "redis_over_json", 1.6, "x"),
    _most("Memory of an idle connection", "idle", "value", 20, "KiB"),
)


def judge(results: Results) -> list[Outcome]:
    """Each goal, with medians; a ratio is one of medians."""
    outcomes = []
    for goal in GOALS:
        ours = figures(results, goal.workload, OURS, goal.figure)
        found = statistics.median(ours) if ours else None
        if goal.peer is not None and found is not None:
            theirs = figures(results, goal.peer_workload or goal.workload, goal.peer, goal.figure)
            found = found / statistics.median(theirs) if theirs else None
        outcomes.append(Outcome(goal, found))
    return outcomes
