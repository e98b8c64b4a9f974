"""One run: rounds over systems over workloads, into one JSON object that is saved after each figure.

The servers of one system run at a time, started on an empty folder in each round: an idle Connect Chat (a JVM and
three polling workers) or an idle broker would take CPU and cache from whoever is measured on a small machine. In each
round the systems come in another order. A workload that fails or hangs is one cell with its reason; its system is
started anew for the rest.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape

from bench.links import LinkError
from bench.measure import machine, summary
from bench.scale import Scale
from bench.systems import HERE, NotInstalled, System
from bench.systems.connect_chat import ConnectChat
from bench.systems.ejabberd import Ejabberd
from bench.systems.mosquitto import Mosquitto
from bench.systems.nats import Nats
from bench.workloads import Skipped, Workload, drain, latency, online, store
from docker.local.layout import StackError

SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (ConnectChat, Mosquitto, Nats, Ejabberd)}
START_LIMIT = 120.0
WARM_PER_SECOND = 1_000
WARM_SECONDS = 8.0

screen = Console(stderr=True, highlight=False)


def installed(names: Sequence[str]) -> dict[str, str]:
    """The versions of those systems that are installed; says what is missing, and goes on without it."""
    versions = {}
    for name in names:
        try:
            versions[name] = SYSTEMS[name].version()
        except NotInstalled as missing:
            screen.print(f"[yellow]{missing}; going on without it[/yellow]")
    return versions


class Run:
    """The rounds and what came of them."""

    def __init__(self, systems: Sequence[str], workloads: Sequence[Workload], scale: Scale, rounds: int) -> None:
        self.versions = installed(systems)
        self.workloads = workloads
        self.scale = scale
        self.rounds = rounds
        self.cells: dict[str, dict[str, list[dict[str, Any]]]] = {w.name: {} for w in workloads}
        self._folder = HERE / "data" / str(os.getpid())
        self._began = datetime.now(UTC)

    def report(self) -> dict[str, Any]:
        """Everything so far, ready for JSON."""
        return {
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": self.versions,
            "titles": {name: SYSTEMS[name].title for name in self.versions},
            "promises": {name: SYSTEMS[name].promise for name in self.versions},
            "scale": msgspec.to_builtins(self.scale),
            "workloads": {
                w.name: {"title": w.title, "unit": w.unit, "higher_is_better": w.higher_is_better}
                for w in self.workloads
            },
            "cells": {
                workload: {system: _cell(rounds) for system, rounds in found.items()}
                for workload, found in self.cells.items()
            },
        }

    async def play(self, path: Path) -> None:
        """Run everything and save it to ``path`` as it grows."""
        path.parent.mkdir(parents=True, exist_ok=True)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        try:
            for number in range(self.rounds):
                order = list(self.versions)
                random.shuffle(order)
                for name in order:
                    screen.rule(f"round {number + 1} of {self.rounds}: {SYSTEMS[name].title}", align="left")
                    now = [w for w in self.workloads if w.rounds is None or number < w.rounds]
                    await self._turn(SYSTEMS[name], now, path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.report())) + b"\n")

    async def _turn(self, kind: type[System], workloads: Sequence[Workload], path: Path) -> None:
        turn = _Turn(kind, self._folder / kind.name, self.scale)
        try:
            for workload in workloads:
                if workload.only not in (None, kind.name):
                    continue
                began = time.monotonic()
                result = await turn.measure(workload)
                self.cells[workload.name].setdefault(kind.name, []).append(result)
                self._save(path)
                took = f"[dim]({time.monotonic() - began:.0f} s)[/dim]"
                screen.print(f"  {workload.title:<48}{_line(workload, result)}  {took}", soft_wrap=True)
        finally:
            await turn.end()


class _Turn:
    """One system in one round; after a failure it is started anew, after one at its start no more."""

    def __init__(self, kind: type[System], folder: Path, scale: Scale) -> None:
        self._kind = kind
        self._folder = folder
        self._scale = scale
        self._system: System | None = None
        self._broken = ""

    async def measure(self, workload: Workload) -> dict[str, Any]:
        """Figures, or ``error`` or ``skipped`` with the reason."""
        if self._broken:
            return {"error": self._broken}
        if workload.cold:
            await self.end()
        try:
            if self._system is None:
                self._system = await self._start(warm=not workload.cold)
            async with asyncio.timeout(workload.limit):
                return await workload.run(self._system, self._scale)
        except Skipped as skipped:
            return {"skipped": str(skipped)}
        except TimeoutError:
            error = f"not done after {START_LIMIT if self._system is None else workload.limit:g} s"
        except (LinkError, StackError, OSError, RuntimeError, ExceptionGroup) as failure:
            causes = failure.exceptions if isinstance(failure, ExceptionGroup) else [failure]
            error = "; ".join(sorted({str(cause) or repr(cause) for cause in causes}))[:500]
        if self._system is None:
            self._broken = error = f"it does not start: {error}"
        await self.end()
        return {"error": error}

    async def _start(self, *, warm: bool) -> System:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        system = self._kind(self._folder)
        try:
            async with asyncio.timeout(START_LIMIT):
                await system.start()
                # A JVM's first thousands of messages, and records, are interpreted; nobody's first ones count.
                for workload in (store, drain, online, latency(WARM_PER_SECOND)) if warm else ():
                    await workload(system, Scale(messages=self._kind.warm, seconds=WARM_SECONDS))
        except BaseException:
            await system.stop()
            raise
        return system

    async def end(self) -> None:
        """Stop the servers, if they run."""
        if self._system is not None:
            await self._system.stop()
            self._system = None


def _line(workload: Workload, result: dict[str, Any]) -> str:
    if "error" in result:
        return f"[red]failed: {escape(result['error'])}[/red]"
    if "skipped" in result:
        return f"[dim]{result['skipped']}[/dim]"
    return f"{result['value']:>12,.1f} {workload.unit}, server CPU {result['server_cpu_us']:,.1f} us"


def _cell(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    values = [result["value"] for result in rounds if "value" in result]
    return {"rounds": rounds, **({"value": summary(values)} if values else {})}
