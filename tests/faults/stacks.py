"""A stack with several of each service."""

from __future__ import annotations

import asyncio
from pathlib import Path

from docker.local.temporary_stack import Stack
from tests.faults.proxy import WORKERS


class LargerStack(Stack):
    """A stack with two gateways and ``workers`` workers of each app."""

    def __init__(self, data: Path, workers: int = 2) -> None:
        super().__init__(data)
        self._workers = workers

    async def _start_all(self) -> None:
        await super()._start_all()
        for number in range(2, self._workers + 1):
            names = ("gateway", *WORKERS) if number == 2 else WORKERS
            await asyncio.gather(*(self.start(self.service(name)) for name in names))
