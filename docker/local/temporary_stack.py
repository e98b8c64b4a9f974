"""The stack of one test run, and the clients and helpers with which tests use it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
from redis.asyncio.cluster import RedisCluster

from chat_streams.model.position import Position
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import mint
from clients.python.client import SUBPROTOCOL, Client, all_sent
from docker.local.engines import DynamoDB
from docker.local.layout import HOST, ROOT, Layout, StackError, base_environment, create_secret, service_environment
from docker.local.part import Part, Running
from docker.local.parts import Service, create_topics, engines
from docker.local.probes import WITHIN_S, Raw, Received, eventually
from docker.local.span_collector import Collector
from tables.inbox import keys

TOKEN_S = 3600
INSTANCES = 3
GENEROUS = {
    f"CHAT_{name}": str(10**9)
    for name in ("SEND_RATE", "SEND_BURST", "SEND_BYTES_RATE", "SEND_BYTES_BURST", "CONNECT_RATE", "CONNECT_BURST")
}
"""Rate limits that no test reaches; those of limits have their own."""
PATIENT = {"CHAT_HEARTBEAT": "600", "CHAT_HELLO_TIMEOUT": "600", "CHAT_LEASE": "60"}
"""On one busy core a bare WebSocket may be read late, and a gateway may be late to renew its lease."""


def start_process(part: Part) -> Running:
    """Start a part that ends with this process, even after Ctrl-C, when pytest finalizes nothing."""
    running = part.start()
    atexit.register(running.kill)
    return running


async def stop(running: Running) -> None:
    """Stop a process in order (SIGTERM) and wait until it is gone, however long its shutdown takes."""
    running.process.terminate()
    await eventually(lambda: not running.alive, f"{running.part.name} ends")


def _quick(parts: list[Part]) -> list[Part]:
    # On disk, DynamoDB Local stores a hundred messages a second, which would delay all tests of history.
    for part in parts:
        if isinstance(part, DynamoDB):
            index = part.command.index("-dbPath")
            part.command[index : index + 2] = ["-inMemory"]
    return parts


@contextlib.contextmanager
def aws_of(layout: Layout) -> Iterator[None]:
    """Have AWS's SDK in this process take the credentials of a stack's DynamoDB."""
    before = {name: os.environ.get(name) for name in service_environment(layout) if name.startswith("AWS_")}
    os.environ.update({name: value for name, value in service_environment(layout).items() if name in before})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Stack:
    """The engines and services of one test run, as children of this process."""

    code: Path = ROOT
    """The folder whose code the services run, those started later among them."""

    def __init__(self, data: Path, traced: bool = False, patient: bool = False) -> None:
        self.layout = Layout.free(data)
        self._traced = traced
        self._own = GENEROUS | (PATIENT if patient else {})
        self.environment = base_environment() | service_environment(self.layout)
        """The environment of commands and of further services of the stack."""
        create_secret(self.layout)
        self.settings = Settings(
            kafka=f"{HOST}:{self.layout.kafka}",
            redis=f"redis://{HOST}:{self.layout.redis}",
            dynamodb_endpoint=f"http://{HOST}:{self.layout.dynamodb}",
            gateway_port=self.layout.gateway,
            jwt_secret_file=self.layout.secret_file,
        )
        self.redis = RedisCluster.from_url(self.settings.redis, max_connections=1_000)
        self.running: dict[str, Running] = {}
        self.collector = Collector()
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        try:
            await self.collector.start()
            await self._start_all()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _start_all(self) -> None:
        await asyncio.gather(*(self.start(part) for part in _quick(engines(self.layout))))
        await asyncio.to_thread(create_topics, self.layout, WITHIN_S, self.code)
        names = ("gateway", "messaging", "notification", "history")
        await asyncio.gather(*(self.start(self.service(name)) for name in names))

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._session.close()
            await self.redis.aclose()
            await self.collector.stop()
        finally:
            # The data is thrown away, so no part needs an orderly end.
            for running in self.running.values():
                running.kill()

    async def start(self, part: Part) -> Running:
        """Start a part and wait until it is ready; from now on its death is an error, unless a test causes it."""
        if isinstance(part, Service):
            # Workers trace the messages that a gateway has sampled: none, unless a test wants it.
            traced = {"CHAT_TRACES": self.collector.url, "CHAT_TRACE_SAMPLE": "0", "OTEL_BSP_SCHEDULE_DELAY": "100"}
            part.environment = self._own | (traced if self._traced else {}) | part.environment
        await asyncio.to_thread(part.prepare)
        running = self.running[part.name] = start_process(part)
        await running.wait_ready(WITHIN_S)
        return running

    def service(self, name: str, **settings: object) -> Service:
        """Return another instance of a service on a free port, not started yet; settings as ``inbox_ttl=1``."""
        taken = {part.name for part in (running.part for running in self.running.values())}
        instance = next(n for n in range(1, INSTANCES + 1) if (name if n == 1 else f"{name}-{n}") not in taken)
        service = Service(self.layout, name, instance)
        service.code = self.code
        service.environment |= {f"CHAT_{key.upper()}": str(value) for key, value in settings.items()}
        return service

    def forget(self, running: Running) -> None:
        """Remove a part that a test has ended."""
        running.kill()
        del self.running[running.part.name]

    def instance(self, name: str) -> Running:
        """Return the one running instance of a service."""
        (found,) = (r for n, r in self.running.items() if n.partition("-")[0] == name)
        return found

    def check(self) -> None:
        """Raise ``StackError`` for a part that died, with the end of its log."""
        dead = [running for running in self.running.values() if not running.alive]
        if dead:
            raise StackError(
                "\n".join(
                    f"{r.part.name} has died with exit code {r.process.returncode}; the end of its log {r.part.log}:\n"
                    f"{r.part.last_lines()}"
                    for r in dead
                )
            )

    @property
    def url(self) -> str:
        """The WebSocket URL of the gateway."""
        return self.running["gateway"].part.url

    @property
    def urls(self) -> list[str]:
        """The WebSocket URLs of all gateways."""
        return [running.part.url for name, running in self.running.items() if name.partition("-")[0] == "gateway"]

    def token(self, name: str, ttl_s: int = TOKEN_S) -> str:
        """Return a token for a user."""
        return mint(self.settings.jwt_key(), name, ttl_s)

    def connect(self, name: str, received: Received | None = None, device: str = "phone", **options: Any) -> Client:
        """Return a client of the gateway, or of another one given as ``url``; enter it to connect."""
        url = options.pop("url", self.url)
        options.setdefault("timeout_s", WITHIN_S)
        return Client(url, options.pop("token", self.token(name)), device, on_messages=received, **options)

    @contextlib.asynccontextmanager
    async def socket(self, url: str | None = None) -> AsyncIterator[Raw]:
        """Open a bare WebSocket, without a hello."""
        ws = await self._session.ws_connect(url or self.url, protocols=(SUBPROTOCOL,), max_msg_size=8 * 1024 * 1024)
        raw = Raw(ws)
        try:
            yield raw
        finally:
            raw.abort()
            await ws.close()

    @contextlib.asynccontextmanager
    async def raw(
        self, name: str, device: str = "phone", after: str | None = None, url: str | None = None
    ) -> AsyncIterator[Raw]:
        """Open a bare WebSocket and say hello."""
        async with self.socket(url) as raw:
            await raw.hello(self.token(name), device, after)
            yield raw

    async def send(self, sender: str, to: str, bodies: Iterable[Any]) -> list[str]:
        """Send messages on a connection of their own; returns their ids once all are confirmed."""
        async with self.connect(sender, device="sender") as client:
            return [sent.id for sent in all_sent(await client.send_many((to, body) for body in bodies))]

    async def get(self, path: str, part: Part) -> tuple[int, Any]:
        """Return the status of a service's page with its JSON, or its text."""
        async with self._session.get(f"http://{HOST}:{part.port}{path}") as response:
            if response.content_type == "application/json":
                return response.status, await response.json()
            return response.status, await response.text()

    async def stored(self, name: str) -> int:
        """Return the number of entries in a user's inbox, from Redis itself."""
        return int(await self.redis.xlen(keys(name)[0]))

    async def top(self, name: str) -> Position:
        """Return the highest position in a user's inbox, from Redis itself."""
        answer: Any = await self.redis.xrevrange(keys(name)[0], count=1)
        ((entry, _),) = answer
        return Position.parse(entry.decode())

    async def wait_stored(self, name: str, count: int) -> None:
        """Wait until a user's inbox has ``count`` entries."""

        async def is_so() -> bool:
            return await self.stored(name) == count

        await eventually(is_so, f"{count} entries in the inbox of {name}")
