"""A rolling upgrade from another commit's code under load, one process after the other, in both orders."""

from __future__ import annotations

import argparse
import asyncio
import math
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Final

from docker.local.layout import ROOT
from docker.local.parts import create_topics
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Phase
from tests.faults.proxy import WORKERS
from tests.faults.report import print_table, table_of
from tests.faults.runner import Plan, add_options, options_of, show
from tests.faults.stacks import LargerStack
from tests.faults.trial import PROBE_S, PROMISED, Fault, Limits, Probe, Trial

SEED = 1
ORDERS: Final = {"workers first": (*WORKERS, "gateway"), "gateways first": ("gateway", *WORKERS)}
STEP_MESSAGES = 200
STEPS: Final = 4
REPLACED_S = 60.0
"""Seconds for the replacement of a process, with the messages that follow."""
PASSES = Limits(late=math.inf, quiet=0.0)
"""The limits for a message to each partition while processes are replaced: it has to pass, however late."""
LIMITS = PROMISED._replace(whole=PROMISED.whole + 4 * STEPS * (REPLACED_S + PROBE_S))


def unpack(commit: str, folder: Path) -> Path:
    """Unpack the code of a commit into a new folder within ``folder``; raises ``CalledProcessError``."""
    done = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    target = folder / "code"
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=done.stdout, check=True)
    return target


class OldStack(LargerStack):
    """A stack with two of each service, which run the code in a folder."""

    def __init__(self, code: Path, data: Path) -> None:
        super().__init__(data)
        self.code = code


class Upgrade(Fault):
    """The replacement of each process: of two instances one is upgraded, downgraded, then the other, then it again."""

    def __init__(self, stack: Stack, order: tuple[str, ...]) -> None:
        super().__init__(stack)
        self.victim = ", ".join(order)
        self._order = order

    async def happen(self, crowd: Crowd) -> None:
        """Replace one process after the other; each time, messages pass on all partitions before the next one."""
        old, new = self.stack.code, ROOT
        # As the changelog says of a version that has new topics.
        await asyncio.to_thread(create_topics, self.stack.layout, WITHIN_S, new)
        for service in self._order:
            first, second = service, f"{service}-2"
            for name, code in ((first, new), (first, old), (second, new), (first, new)):
                self.stack.running[name].part.code = code
                await self.restart(name)
                await Probe(self.stack, service == "history", PASSES).healed()
                await crowd.until_confirmed(crowd.confirmed + STEP_MESSAGES)


def trial_of(order: str, stack: Stack) -> Trial:
    """Return the trial of an order."""
    return Trial(f"upgrade, {order}", SEED, Phase.LIVE, Upgrade(stack, ORDERS[order]), with_history=True)


def main() -> None:
    """Parse the command line and run; exits with 1 if something was lost, swapped or repeated, or did not heal."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.upgrade", description=__doc__)
    parser.add_argument("--from", dest="commit", required=True, metavar="COMMIT", help="the code to begin with")
    parser.add_argument("--order", choices=list(ORDERS), action="append", help="one order only (default: both)")
    add_options(parser)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chat-code-") as folder:
        try:
            code = unpack(options.commit, Path(folder))
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"there is no code of {options.commit}: {error.stderr.decode().strip()}") from error
        work: dict[tuple[str, int], Plan[OldStack]] = {
            (f"upgrade, {order}", SEED): partial(trial_of, order) for order in options.order or ORDERS
        }
        stack = partial(OldStack, code)
        results = show(work, stack, options_of(options), f"from {options.commit}", LIMITS, own_stacks=True)
    print_table(table_of(f"upgrade from {options.commit}", results))
    raise SystemExit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
