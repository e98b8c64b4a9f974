"""The base of all parts of the local stack: a process with a log and a readiness check."""

from __future__ import annotations

import abc
import asyncio
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import aiohttp

from docker.local.layout import HOST, ROOT, Layout, StackError, base_environment

PROBE_SECONDS = 2.0
LAST_LINES = 15


class Part(abc.ABC):
    """One process of the stack. It has no shell above it, so its pid can be killed and paused."""

    name: str
    command: list[str]
    environment: dict[str, str]
    """The variables added to ``base_environment``. Change them before ``start`` only."""
    ports: dict[str, int]
    """The port for each field of ``Layout`` this part listens on, the main one first."""
    url_format: str
    code: Path = ROOT
    """The folder whose code the process runs."""
    ready_seconds = 30.0
    stop_seconds = 20

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.environment = {}

    @property
    def port(self) -> int:
        """The main port."""
        return next(iter(self.ports.values()))

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return self.url_format.format(f"{HOST}:{self.port}")

    @property
    def log(self) -> Path:
        """The file with everything the part prints."""
        return self.layout.logs / f"{self.name}.log"

    @property
    def folder(self) -> Path:
        """The part's own data folder."""
        return self.layout.data / self.name

    @property
    def directory(self) -> Path:
        """The folder that the process starts in."""
        return self.code

    def last_lines(self) -> str:
        """Return the last 15 lines of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"

    def prepare(self) -> None:
        """Create the folders and files the process needs; repeated, it changes nothing but the configuration.

        Raises ``StackError`` when a program it needs is not installed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def start(self) -> Running:
        """Start the process as a child of this one, appending to its log. Call ``prepare`` first."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                self.command,
                cwd=self.directory,
                env=base_environment() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Running(self, process)

    @abc.abstractmethod
    async def is_ready(self) -> bool:
        """Ask the process once whether it can do its work; returns False when there is no answer within about 2 s."""

    async def wait_ready(self, seconds: float | None = None, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until the part can do its work, for ``seconds`` at most (the part's own limit when None).

        ``alive`` tells whether the process exists. Raises ``StackError`` with the end of the log when it does not, or
        when the time is up.
        """
        limit = self.ready_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(limit):
                while True:
                    if not alive():
                        raise StackError(f"{self.name} has died; the end of its log {self.log}:\n{self.last_lines()}")
                    if await self.is_ready():
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StackError(
                f"{self.name} is not ready after {limit:g} s; the end of its log {self.log}:\n{self.last_lines()}"
            ) from None


class Running:
    """A process that ``Part.start`` started, and the actions of a test on it; on a dead process they do nothing."""

    def __init__(self, part: Part, process: subprocess.Popen[bytes]) -> None:
        self.part = part
        self.process = process

    @property
    def pid(self) -> int:
        """The id of the part's own process: it has no shell or launcher above it."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """True while the process exists, even if it is paused."""
        return self.process.poll() is None

    async def wait_ready(self, seconds: float | None = None) -> None:
        """Wait until the part can do its work; raises ``StackError`` like ``Part.wait_ready``, at once if it dies."""
        await self.part.wait_ready(seconds, lambda: self.alive)

    def pause(self) -> None:
        """Pause the process (SIGSTOP): its connections stay open and nothing answers."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused process (SIGCONT)."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process without a chance to clean up (SIGKILL); returns when it is gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the process in order (SIGTERM); it is killed if it still runs after the part's ``stop_seconds``."""
        self.process.terminate()
        self.resume()
        try:
            self.process.wait(self.part.stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()


async def get_status(port: int, path: str) -> int | None:
    """Return the status of a GET request, or None when there is no answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as session,
            session.get(f"http://{HOST}:{port}{path}") as response,
        ):
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
