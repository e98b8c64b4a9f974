"""Kafka is away for some seconds, and each gateway loses its lease meanwhile: all works again soon after."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from typing import NamedTuple

from docker.local.temporary_stack import Stack
from tables import slots
from tests.faults.crowd import Crowd, Phase
from tests.faults.report import print_table, table_of
from tests.faults.runner import Plan, add_options, options_of, show
from tests.faults.stacks import LargerStack
from tests.faults.trial import Fault, Trial

SEED = 1


class Absence(NamedTuple):
    """A way for Kafka to be away, ``pause`` (SIGSTOP) or ``kill`` (SIGKILL, then a start), and for how many seconds."""

    kind: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.kind}:kafka for {self.seconds:g} s"


ABSENCES = (Absence("pause", 1.0), Absence("pause", 40.0), Absence("pause", 300.0), Absence("kill", 40.0))


async def expire_leases(stack: Stack) -> None:
    """Remove the leases of all gateways from Redis, as time does where a gateway cannot renew its own."""
    for slot in range(stack.settings.slots):
        await stack.redis.delete(slots._key(slot))


class KafkaAway(Fault):
    """Kafka does not answer, and the gateways need new slots while it is so."""

    victim = "kafka"

    def __init__(self, stack: Stack, absence: Absence) -> None:
        super().__init__(stack)
        self._absence = absence

    async def happen(self, crowd: Crowd) -> None:
        """Stop Kafka for the time, and bring it back."""
        running = self.stack.running[self.victim]
        is_killed = self._absence.kind == "kill"
        if is_killed:
            self.away.add(self.victim)
            running.kill()
        else:
            running.pause()
        try:
            await expire_leases(self.stack)
            await asyncio.sleep(self._absence.seconds)
        finally:
            running.resume()
        if is_killed:
            await self.stack.start(running.part)
            self.away.discard(self.victim)


def trial_of(absence: Absence, stack: Stack) -> Trial:
    """Return the trial of an absence."""
    return Trial(str(absence), SEED, Phase.LIVE, KafkaAway(stack, absence), outage_s=absence.seconds)


def main() -> None:
    """Parse the command line and run; exits with 1 if something did not heal, or was lost, swapped or repeated."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kafka_away", description=__doc__)
    for kind, what in (("pause", "SIGSTOP, then SIGCONT"), ("kill", "SIGKILL, then a start")):
        default = [absence.seconds for absence in ABSENCES if absence.kind == kind]
        shown = " ".join(f"{seconds:g}" for seconds in default)
        parser.add_argument(
            f"--{kind}",
            type=float,
            nargs="*",
            metavar="SECONDS",
            help=f"{what} (default, where neither is given: {shown})",
        )
    add_options(parser)
    options = parser.parse_args()
    given = [Absence(kind, s) for kind in ("pause", "kill") for s in getattr(options, kind) or []]
    absences = given or list(ABSENCES)
    work: dict[tuple[str, int], Plan[LargerStack]] = {
        (str(absence), SEED): partial(trial_of, absence) for absence in absences
    }
    results = show(work, LargerStack, options_of(options))
    print_table(table_of("Kafka away", results))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
