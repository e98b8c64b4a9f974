"""The size of a run: the number of messages, users and seconds of each workload."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The numbers that a run is made of; times are in seconds."""

    messages: int = 50_000
    users: int = 10_000
    storm_users: int = 1_000
    senders: int = 1_000
    idle: int = 10_000
    seconds: float = 6.0
    settle: float = 5.0


QUICK = Scale(messages=20_000, users=2_000, storm_users=200, senders=300, idle=1_000, seconds=2.0, settle=1.0)
