"""A chat in the terminal: ``python -m docker.local.chat USER``, or ``make chat USER=alice``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.text import Text

from chat_streams.model.addresses import join_address
from chat_streams.model.errors import SettingsError
from chat_streams.model.text import escaped
from chat_streams.runtime.settings import Settings, settings
from chat_streams.runtime.tokens import mint
from clients.python.client import Client, Message
from clients.python.errors import ConnectionClosed, RequestRefused
from docker.local.layout import Layout, StackError, service_environment

DEVICE = "terminal"
TOKEN_S = 3600
SETTLE_S = 10.0
UNCONFIRMED = 1_000
HELP = """\
bob hello      send "hello" to bob
/to bob        send every following line to bob; /to alone ends that
/history bob   the latest messages exchanged with bob
/quit          leave, as Ctrl-D and Ctrl-C do
/help          this"""


@dataclass(frozen=True)
class Line:
    """A parsed line; its kind is ``send``, ``to``, ``history``, ``help``, ``quit``, ``nothing`` or ``wrong``."""

    do: str
    user: str = ""
    text: str = ""


def parse(line: str, to: str = "") -> Line:
    """Parse a line of input; ``to`` is the user that plain lines are sent to, if any."""
    line = line.strip()
    if not line:
        return Line("nothing")
    if line.startswith("/"):
        command, _, rest = line[1:].partition(" ")
        user = rest.strip()
        if command == "to" or (command == "history" and (user or to)):
            return Line(command, user or (to if command == "history" else ""))
        if command in ("quit", "help"):
            return Line(command)
        return Line(
            "wrong", text="/history needs a user" if command == "history" else f"/{command} is no command: /help"
        )
    if to:
        return Line("send", to, line)
    user, _, text = line.partition(" ")
    if not text.strip():
        return Line("wrong", text=f"what shall {user} get? Type: {user} hello")
    return Line("send", user, text.strip())


def printable(body: Any) -> str:
    """Return a body as one line of text that cannot steer the terminal, nor look like a line of another sender."""
    return escaped(body if isinstance(body, str) else msgspec.json.encode(body).decode())


def clock(at: str) -> str:
    """Return an RFC 3339 time in local time, with the date unless it is today."""
    try:
        local = datetime.fromisoformat(at).astimezone()
    except ValueError:
        return escaped(at)
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")


def with_defaults() -> Settings:
    """Read the settings; those the environment does not set are the ones of ``make up`` in this checkout.

    Raises ``SettingsError``.
    """
    if not {"CHAT_JWT_SECRET", "CHAT_JWT_SECRET_FILE"} & os.environ.keys():
        try:
            layout = Layout.from_settings()
        except StackError as error:
            raise SettingsError(str(error)) from error
        if not layout.secret_file.exists():
            raise SettingsError(f"there is no {layout.secret_file}, the key for tokens: run make up")
        local = service_environment(layout)
        for name, value in local.items():
            os.environ.setdefault(name, value)
    return settings()


class Chat:
    """A chat between a terminal, or a pipe, and one client."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.failed = False
        self._screen = Console(highlight=False, soft_wrap=True)
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._client: Client
        self._away: int | None = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._to = ""

    async def run(self, url: str, key: str) -> None:
        """Chat until the input ends; raises ``ConnectionClosed`` when the server closes the connection."""
        client = Client(url, lambda: mint(key, self.user, TOKEN_S), DEVICE, on_messages=self._arrived)
        async with client as self._client:
            if self._interactive:
                self._print(f"You are {self.user}. Type: bob hello   (/help for more, Ctrl-D to leave)", "dim")
            work = [asyncio.create_task(self._read()), asyncio.create_task(client.wait_closed())]
            greeting = asyncio.create_task(self._greet())
            try:
                done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if self._sending:
                    await asyncio.wait(self._sending)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(greeting, 0 if self._interactive else SETTLE_S)
            finally:
                for task in (*work, greeting, *self._sending):
                    task.cancel()
                await asyncio.gather(*work, greeting, *self._sending, return_exceptions=True)

    def _print(self, text: str, style: str = "", who: str = "", at: str = "") -> None:
        if self._interactive:
            self._screen.file.write("\r\x1b[K")
        time, sender = f"{clock(at)} " if at else "", escaped(who)
        self._screen.print(Text.assemble((time, "dim"), (sender, "bold cyan"), (text, style)))
        self._prompt()

    def _prompt(self) -> None:
        if self._interactive:
            self._screen.file.write(f"\r\x1b[K{self.user}{' to ' + escaped(self._to) if self._to else ''}> ")
            self._screen.file.flush()

    async def _arrived(self, messages: list[Message]) -> None:
        if self._away is not None:
            if self._away == 0:
                self._print("While you were away:", "bold")
            self._away += len(messages)
        for message in messages:
            self._print(printable(message.body), who=f"{message.sender}: ", at=message.at)

    async def _greet(self) -> None:
        await self._client.wait_caught_up()
        if self._away:
            self._print(f"{self._away} message{'s' * (self._away != 1)} while you were away", "bold")
        self._away = None

    async def _read(self) -> None:
        lines: asyncio.Queue[str | None] = asyncio.Queue(100)
        loop = asyncio.get_running_loop()
        # A thread, because asyncio treats a file, a pipe and a terminal differently; a daemon, because its read may
        # never return.
        threading.Thread(target=_read_lines, args=(loop, lines), daemon=True).start()
        while (line := await lines.get()) is not None:
            asked = parse(line, self._to)
            if asked.do == "quit":
                return
            if asked.do == "send":
                while len(self._sending) >= UNCONFIRMED:
                    await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._send(asked.user, asked.text))
                self._sending.add(task)
                task.add_done_callback(self._sending.discard)
            elif asked.do == "history":
                await self._history(asked.user)
            elif asked.do == "help":
                self._print(HELP)
            elif asked.do == "wrong":
                self._print(escaped(asked.text), "yellow")
            elif asked.do == "to":
                self._to = asked.user
            self._prompt()

    async def _send(self, to: str, text: str) -> None:
        try:
            sent = await self._client.send(to, text)
        except (RequestRefused, TimeoutError) as error:
            self.failed = True
            self._print(escaped(f"✗ to {to}: {text}: {error}"), "red")
        else:
            self._print(escaped(f"✓ to {to}: {text}"), "green", at=sent.at)

    async def _history(self, user: str) -> None:
        try:
            page = await self._client.history(user)
        except (RequestRefused, TimeoutError) as error:
            self.failed = True
            self._print(escaped(f"no history: {error}"), "red")
            return
        for message in sorted(page.messages, key=lambda message: message.at):
            self._print(printable(message.body), "dim", who=f"{message.sender}: ", at=message.at)
        if not page.messages:
            self._print(escaped(f"nothing with {user} yet"), "dim")


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str | None]) -> None:
    # The raw descriptor: a thread that waits inside sys.stdin keeps the interpreter from exiting.
    rest = b""
    with contextlib.suppress(OSError, RuntimeError):  # the loop has ended meanwhile
        while chunk := os.read(0, 65_536):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                asyncio.run_coroutine_threadsafe(lines.put(line.decode(errors="replace")), loop).result()
        for last in ([rest.decode(errors="replace")] if rest else []) + [None]:
            asyncio.run_coroutine_threadsafe(lines.put(last), loop).result()


@click.command()
@click.argument("user")
def main(user: str) -> None:
    """Chat as USER in the terminal; pending messages come first."""
    chat = Chat(user)
    try:
        found = with_defaults()
        url = f"ws://{join_address(found.gateway_host, found.gateway_port)}/v1/connect"
        asyncio.run(chat.run(url, found.jwt_key()))
    except KeyboardInterrupt:
        click.echo()
    except (SettingsError, ConnectionClosed) as error:
        missing = isinstance(error, ConnectionClosed) and error.code == "unreachable"
        raise click.ClickException(escaped(f"{error}{': run make up' if missing else ''}")) from error
    sys.exit(chat.failed)


if __name__ == "__main__":
    main()
