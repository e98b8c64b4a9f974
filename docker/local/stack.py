"""The command behind ``make up``, ``down``, ``status`` and ``logs``: the parts of the local stack under supervisord."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import click
from rich.console import Console
from rich.table import Table

from docker.local.layout import (
    ROOT,
    Layout,
    StackError,
    base_environment,
    check_services,
    create_secret,
    is_free,
    service_environment,
    unknown_variables,
    variable,
)
from docker.local.part import Part
from docker.local.parts import create_topics, engines, services
from docker.local.supervision import Supervisor

OTHER_SETTINGS = "other CHAT_* variables, or by another version"

console = Console(highlight=False)


@dataclass(frozen=True)
class State:
    """A part and its state: ``ready``, ``starting``, ``restarting``, ``not ready``, ``failed`` or ``stopped``."""

    part: Part
    state: str
    pid: int | None


class Stack:
    """The engines and the services of one layout, and their supervisord."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.engines = engines(layout)
        self.services = services(layout)
        self.parts = [*self.engines, *self.services]
        self.supervisor = Supervisor(layout, {"engines": self.engines, "services": self.services})

    async def states(self) -> list[State]:
        """Return the state of every part, from supervisord and the running parts."""
        processes = self.supervisor.processes() if self.supervisor.is_running() else {}
        return list(await asyncio.gather(*(self._state(part, processes.get(part.name)) for part in self.parts)))

    @staticmethod
    async def _state(part: Part, process: dict[str, Any] | None) -> State:
        if process is None:
            return State(part, "stopped", None)
        if process["pid"]:
            waiting = {"STARTING": "starting", "STOPPING": "stopping"}.get(process["statename"], "not ready")
            return State(part, "ready" if await part.is_ready() else waiting, process["pid"])
        return State(part, {"BACKOFF": "restarting", "FATAL": "failed"}.get(process["statename"], "stopped"), None)

    async def up(self) -> None:
        """Start what is not running, wait until all is ready, and print the addresses.

        Raises ``StackError`` when a port is busy or a part does not become ready; the parts that have started keep
        running.
        """
        create_secret(self.layout)
        check_services(self.layout)
        with self._alone():
            began = time.monotonic()
            running = self.supervisor.is_running()
            if running and self.supervisor.has_other_settings():
                raise StackError(f"the stack is running, started with {OTHER_SETTINGS}: 'make down' it first")
            if not running and (left := self.supervisor.stop_orphans()):
                console.print(f"stopped {left} parts left behind by a supervisord that died")
            states = await self.states()
            if all(state.state == "ready" for state in states):
                console.print("everything is up already")
                _print_table(states)
                self._print_inspector()
                return
            self._check_ports(state.part for state in states if state.pid is None)
            if not running:
                self.supervisor.start()
            stopped = {state.part.name for state in states if state.pid is None}
            await self._bring_up(self.engines, stopped)
            with console.status("creating the topics"):
                start = time.monotonic()
                await asyncio.to_thread(create_topics, self.layout)
            console.print(f"{'topics':<13} ready after {time.monotonic() - start:.1f} s")
            await self._bring_up(self.services, stopped)
            console.print(f"everything is up after {time.monotonic() - began:.1f} s")
            _print_table(await self.states())
            self._print_inspector()

    def _print_inspector(self) -> None:
        url = next(part.url for part in self.services if part.name == "inspector")
        console.print(f"inspector: {url}, with a token from 'make token USER=me ROLE=viewer'", soft_wrap=True)

    def down(self) -> None:
        """Stop the services, the engines and supervisord, and the parts that a dead supervisord left behind."""
        if not self.layout.data.exists():
            console.print("nothing is running")
            return
        with self._alone():
            if not self.supervisor.is_running():
                left = self.supervisor.stop_orphans()
                console.print(f"stopped {left} parts without a supervisord" if left else "nothing is running")
                return
            for group in reversed(self.supervisor.groups):
                with console.status(f"stopping the {group}") as status:
                    while left_over := self.supervisor.stop_group(group):
                        status.update(f"stopping {', '.join(left_over)}")
                        time.sleep(0.1)
                console.print(f"the {group} are stopped")
            self.supervisor.shutdown()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the data folder: a second ``up`` or ``down`` waits until it is released."""
        with (self.layout.data / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.print("waiting for another 'make up' or 'make down' to end")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _check_ports(parts: Iterable[Part]) -> None:
        busy = [
            f"port {port}, which {part.name} needs, is taken by another program: stop it, or set {variable(field)}"
            " to a free port"
            for part in parts
            for field, port in part.ports.items()
            if not is_free(port)
        ]
        if busy:
            raise StackError("\n".join(busy))

    async def _bring_up(self, parts: list[Part], stopped: set[str]) -> None:
        """Start those of the parts that are stopped, and wait for all of them."""
        waiting = [part.name for part in parts]
        with console.status("") as status:

            async def bring_up(part: Part) -> None:
                start = time.monotonic()
                if part.name in stopped:
                    await asyncio.to_thread(part.prepare)
                    self.supervisor.start_part(part)
                await part.wait_ready(alive=lambda: bool(self.supervisor.processes()[part.name]["pid"]))
                waiting.remove(part.name)
                console.print(f"{part.name:<13} ready after {time.monotonic() - start:.1f} s")
                status.update(f"waiting for {', '.join(waiting)}")

            status.update(f"waiting for {', '.join(waiting)}")
            results = await asyncio.gather(*map(bring_up, parts), return_exceptions=True)
        if errors := [result for result in results if isinstance(result, BaseException)]:
            if unexpected := [error for error in errors if not isinstance(error, StackError)]:
                raise unexpected[0]
            raise StackError("\n".join(map(str, errors)))


def _print_table(states: list[State]) -> None:
    table = Table()
    for heading in ("part", "state", "pid", "URL"):
        table.add_column(heading, overflow="fold")
    for state in states:
        colour = "green" if state.state == "ready" else "red"
        pid = "" if state.pid is None else str(state.pid)
        table.add_row(state.part.name, f"[{colour}]{state.state}[/]", pid, state.part.url)
    console.print(table)


async def _follow(part: Part, width: int) -> None:
    """Print the end of a part's log and each new line, after the part's name."""
    process = await asyncio.create_subprocess_exec(
        *("tail", f"--pid={os.getpid()}", "-n", "10", "-F", str(part.log)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=1 << 24,
    )
    async for line in cast(asyncio.StreamReader, process.stdout):
        sys.stdout.write(f"{part.name:<{width}} | {line.decode(errors='replace')}")
        sys.stdout.flush()


async def _follow_all(parts: list[Part]) -> None:
    width = max(len(part.name) for part in parts)
    await asyncio.gather(*(_follow(part, width) for part in parts))


@click.group()
def main() -> None:
    """Run Connect Chat on this machine. Ports and the data folder are CHAT_LOCAL_* variables."""
    # Client libraries log that an engine that isn't up yet cannot be reached.
    logging.disable(logging.CRITICAL)
    for line in unknown_variables():
        click.secho(f"warning: {line}", err=True, fg="yellow")


@main.command()
def up() -> None:
    """Start everything in the background; return when all is ready."""
    asyncio.run(Stack(Layout.from_settings()).up())


@main.command()
def down() -> None:
    """Stop everything; the data stays."""
    Stack(Layout.from_settings()).down()


@main.command()
@click.option("--json", "as_json", is_flag=True, help="A list of objects: part, state, pid, url, log.")
def status(as_json: bool) -> None:
    """Show the state of every part."""
    stack = Stack(Layout.from_settings())
    states = asyncio.run(stack.states())
    if any(s.pid for s in states) and stack.supervisor.has_other_settings():
        click.echo(f"the stack was started with {OTHER_SETTINGS}: what follows looks at the present ones", err=True)
    if not as_json:
        _print_table(states)
        return
    answer = [
        {"part": s.part.name, "state": s.state, "pid": s.pid, "url": s.part.url, "log": str(s.part.log)} for s in states
    ]
    click.echo(json.dumps(answer, indent=2))


@main.command()
@click.argument("names", metavar="[PART]...", nargs=-1)
def logs(names: tuple[str, ...]) -> None:
    """Follow the logs of the parts named, or of all."""
    parts = Stack(Layout.from_settings()).parts
    if unknown := set(names) - {part.name for part in parts}:
        known = ", ".join(part.name for part in parts)
        raise StackError(f"there is no part {', '.join(sorted(unknown))}: the parts are {known}")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_follow_all([part for part in parts if not names or part.name in names]))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(command: tuple[str, ...]) -> None:
    """Run a Python module with the settings of the stack's services: run MODULE [ARGUMENT]..."""
    layout = Layout.from_settings()
    create_secret(layout)
    os.chdir(ROOT)
    arguments = [sys.executable, "-m", *command]
    os.execve(sys.executable, arguments, base_environment() | service_environment(layout))  # noqa: S606 (no shell)


if __name__ == "__main__":
    try:
        main()
    except StackError as problem:
        click.secho(f"error: {problem}", err=True, fg="red")
        sys.exit(1)
