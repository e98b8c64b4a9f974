"""Measurement of a piece of work: its seconds, and the CPU time and memory of each process, from ``/proc``."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
CLIENT = "client"


def cpu_of(stat: str) -> float:
    """Return the seconds of CPU time of a process, from the text of its ``/proc/<pid>/stat``."""
    # The process name, in parentheses, may contain spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def cpu(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the seconds of CPU time so far, by name; a process that is gone is left out."""
    found = {}
    for name, pid in processes.items():
        with suppress(OSError):
            found[name] = cpu_of(Path(f"/proc/{pid}/stat").read_text())
    return found


def resident(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the bytes of resident memory, by name; a process that is gone is left out."""
    found = {}
    for name, pid in processes.items():
        with suppress(OSError):
            found[name] = float(resident_of(pid))
    return found


def resident_of(pid: int) -> int:
    """Return the bytes of resident memory of one process; raises ``OSError`` when it is gone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Meter:
    """A measurement between ``__enter__`` and ``__exit__``; ``lap`` reads the clock in between."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = {**processes, CLIENT: os.getpid()}
        self.seconds = 0.0
        self.cpu: dict[str, float] = {}

    def __enter__(self) -> Meter:
        gc.collect()
        gc.disable()
        self._cpu = cpu(self._processes)
        self._began = time.perf_counter()
        return self

    def lap(self) -> float:
        """Return the seconds so far."""
        return time.perf_counter() - self._began

    def __exit__(self, *_: object) -> None:
        self.seconds = self.lap()
        after = cpu(self._processes)
        self.cpu = {name: after[name] - before for name, before in self._cpu.items() if name in after}
        gc.enable()

    def result(self, messages: int) -> dict[str, Any]:
        """Return seconds, messages, CPU seconds by process, and microseconds a message over all servers."""
        servers = sum(used for name, used in self.cpu.items() if name != CLIENT)
        return {
            "seconds": self.seconds,
            "messages": messages,
            "cpu": {name: round(used, 3) for name, used in self.cpu.items()},
            "client_cpu_share": self.cpu.get(CLIENT, 0.0) / self.seconds,
            "server_cpu_us": 1e6 * servers / messages if messages else 0.0,
        }


def summary(rounds: Sequence[float]) -> dict[str, float]:
    """Return the median, the smallest and the largest."""
    return {"median": statistics.median(rounds), "min": min(rounds), "max": max(rounds)}


def machine() -> dict[str, Any]:
    """Return the description of the machine the run was on."""
    model = "unknown"
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
    }
