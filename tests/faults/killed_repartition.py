"""A repartition that kills itself (SIGKILL) after some steps: ``python -m tests.faults.killed_repartition 3 16``."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from chat_streams.model.errors import TopicsError
from chat_streams.operations.repartition import Status, plan, repartition
from chat_streams.runtime.settings import settings

WAIT_S = 60.0


def main(steps: int, partitions: int) -> None:
    """Repartition, and end after ``steps`` steps, if there are so many."""
    left = steps

    def say(status: Status) -> None:
        nonlocal left
        sys.stdout.write(f"{status.stage} {status.text}\n")
        sys.stdout.flush()
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    async def run() -> None:
        await repartition(settings(), await plan(settings(), partitions), WAIT_S, say)

    try:
        asyncio.run(run())
    except TopicsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
