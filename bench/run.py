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

from bench.links import LinkError
from bench.measure import machine, summary
from bench.systems import HERE, NotInstalled, System
from bench.systems.connect_chat import ConnectChat
from bench.systems.ejabberd import Ejabberd
from bench.systems.mosquitto import Mosquitto
from bench.systems.nats import Nats
from bench.workloads import Scale, Skipped, Workload, drain, online, store
from docker.local.layout import StackError

SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (ConnectChat, Mosquitto, Nats, Ejabberd)}
START_LIMIT = 120.0

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
                    await self._turn(SYSTEMS[name], path)
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _save(self, path: Path) -> None:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self.report())) + b"\n")

    async def _turn(self, kind: type[System], path: Path) -> None:
        system: System | None = None
        try:
            for workload in self.workloads:
                if workload.only not in (None, kind.name):
                    continue
                began = time.monotonic()
                try:
                    if system is not None and workload.cold:
                        await system.stop()
                        system = None
                    if system is None:
                        system = await self._start(kind, warm=not workload.cold)
                    async with asyncio.timeout(workload.limit):
                        result = await workload.run(system, self.scale)
                    text = f"{result['value']:>12,.1f} {workload.unit}, server CPU {result['server_cpu_us']:,.1f} us"
                except Skipped as skipped:
                    result = {"skipped": str(skipped)}
                    text = f"[dim]{skipped}[/dim]"
                except TimeoutError:
                    result = {"error": f"not done after {workload.limit:g} s"}
                except (LinkError, StackError, OSError, RuntimeError, ExceptionGroup) as error:
                    causes = error.exceptions if isinstance(error, ExceptionGroup) else [error]
                    result = {"error": "; ".join(sorted({str(cause) or repr(cause) for cause in causes}))[:500]}
                if "error" in result:
                    text = f"[red]failed: {result['error']}[/red]"
                    if system is not None:
                        await system.stop()
                        system = None
                self.cells[workload.name].setdefault(kind.name, []).append(result)
                self._save(path)
                screen.print(
                    f"  {workload.title:<48}{text}  [dim]({time.monotonic() - began:.0f} s)[/dim]", soft_wrap=True
                )
        finally:
            if system is not None:
                await system.stop()

    async def _start(self, kind: type[System], *, warm: bool) -> System:
        folder = self._folder / kind.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        system = kind(folder)
        try:
            async with asyncio.timeout(START_LIMIT):
                await system.start()
                # A JVM's first thousands of messages are interpreted; nobody's first ones count.
                for workload in (store, drain, online) if warm else ():
                    await workload(system, Scale(messages=kind.warm))
        except BaseException:
            await system.stop()
            raise
        return system


def _cell(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    values = [result["value"] for result in rounds if "value" in result]
    return {"rounds": rounds, **({"value": summary(values)} if values else {})}
