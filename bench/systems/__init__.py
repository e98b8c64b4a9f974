"""The systems that are compared, each behind the same few methods."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bench.links import Link
from docker.local.layout import base_environment, is_free

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".local" / "bench"
START_SECONDS = 30.0
STOP_SECONDS = 10.0


class NotInstalled(Exception):
    """An error for a peer that is missing on this machine; the text says how to install it."""


class System(abc.ABC):
    """One system, from its start on an empty folder to its end.

    ``most`` replaces the 50,000 messages of a workload for a system that would need minutes for them. ``warm`` is the
    number of messages it gets before anything is measured. ``array`` is the number of messages a frame may carry (1:
    the system has no arrays).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    promise: ClassVar[str]
    array: ClassVar[int] = 1
    most: ClassVar[int] = 50_000
    warm: ClassVar[int] = 30_000

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.children: dict[str, subprocess.Popen[bytes]] = {}

    @classmethod
    @abc.abstractmethod
    def version(cls) -> str:
        """Return the installed version; raises ``NotInstalled``."""

    @abc.abstractmethod
    async def start(self) -> None:
        """Start all servers, with their data in ``folder``; returns when they answer."""

    async def stop(self) -> None:
        """Stop all servers."""
        for child in self.children.values():
            await asyncio.to_thread(_end, child)
        self.children.clear()

    def processes(self) -> dict[str, int]:
        """Return the pid of each server process, by name."""
        return {name: child.pid for name, child in self.children.items()}

    @abc.abstractmethod
    async def connect(self, user: str, *, receive: bool) -> Link:
        """Connect and log in a user; with ``receive``, messages come and are acknowledged."""

    async def prepare(self, users: Sequence[str]) -> None:  # noqa: B027 - not all systems need it
        """Create users who will be sent messages before they first connect to receive."""

    async def stored(self, counts: dict[str, int]) -> None:  # noqa: B027 - for most, confirmed is stored
        """Wait until the inboxes of offline users hold these numbers of messages."""

    @abc.abstractmethod
    async def emptied(self, links: dict[str, Link]) -> None:
        """Wait until the inboxes of connected users who have received and acknowledged all are empty."""

    async def inspect(self, user: str) -> dict[str, float]:
        """Return further figures of a filled inbox."""
        return {}

    def spawn(self, name: str, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        """Start one server process with a log of its own, in a process group of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                command,
                cwd=self.folder,
                env=base_environment() | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def listening(self, port: int) -> None:
        """Wait until something accepts connections on a port of 127.0.0.1."""
        async with asyncio.timeout(START_SECONDS):
            while is_free(port):
                for name, child in self.children.items():
                    if child.poll() is not None:
                        end = (self.folder / f"{name}.log").read_text(errors="replace")[-2_000:]
                        raise RuntimeError(f"{name} ended with {child.returncode}: {end}")
                await asyncio.sleep(0.05)


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGCONT)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def output(command: Sequence[str]) -> str:
    """Return the output of a short command."""
    return subprocess.run(command, capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL).stdout
