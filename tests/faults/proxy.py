"""TCP proxies between the parts of a stack, so that connections can be reset and refused while both ends live on."""

from __future__ import annotations

import asyncio
import shutil
import socket
import struct
import tempfile
from pathlib import Path
from typing import Self, cast

from docker.local.engines import DynamoDB, Kafka, RedisNode
from docker.local.layout import HOST, Layout, create_secret
from docker.local.part import Part
from docker.local.parts import Service, create_topics
from docker.local.temporary_stack import Stack

HIGH_WATER = 256 * 1024
"""Bytes waiting to be written to one end, above which reading from the other is paused."""
_LINGER_0 = struct.pack("ii", 1, 0)


class _End(asyncio.Protocol):
    """One end of a connection; data that arrives here is written to the other end."""

    def __init__(self, ends: set[_End]) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport
        self.early = b""
        """Data that came before the other end existed: Python 3.11.2 cannot pause reading from the beginning."""
        self._ends = ends

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self._ends.add(self)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.transport.is_closing():
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        if self.other is not None:
            self.other.transport.close()
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._ends.discard(self)
        if self.other is not None:
            if error is not None:
                self.other.reset()
            else:
                self.other.transport.close()

    def reset(self) -> None:
        """Reset the connection with a RST, dropping data that waits to be written."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None and not self.transport.is_closing():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
        self.transport.abort()


class Proxy:
    """A proxy that forwards connections to ``port`` of ``host`` to ``target`` of 127.0.0.1, until it is cut."""

    def __init__(self, port: int, target: int, host: str = HOST) -> None:
        self.port = port
        self._target = target
        self._host = host
        self._ends: set[_End] = set()
        self._server: asyncio.Server | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def restore(self) -> None:
        """Accept connections, for the first time or again."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, self._host, self.port, reuse_address=True)

    def cut(self) -> None:
        """Reset every connection and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for end in list(self._ends):
            end.reset()

    def _accepted(self) -> asyncio.Protocol:
        return _Accepted(self._ends, self)

    def connect(self, near: _End) -> None:
        """Connect an accepted connection with the target."""
        near.transport.pause_reading()
        task = asyncio.create_task(self._connect(near))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, near: _End) -> None:
        try:
            _, far = await asyncio.get_running_loop().create_connection(lambda: _End(self._ends), HOST, self._target)
        except OSError:
            near.reset()
            return
        if self._server is None or near.transport.is_closing():
            near.reset()
            far.reset()
            return
        near.other, far.other = far, near
        far.transport.write(near.early)
        near.transport.resume_reading()


class _Accepted(_End):
    def __init__(self, ends: set[_End], proxy: Proxy) -> None:
        super().__init__(ends)
        self._proxy = proxy

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._proxy.connect(self)


WORKERS = ("messaging", "notification", "history")
INSTANCES = [f"{name}{n}" for name in WORKERS for n in ("", "-2")]
KAFKA_CLIENTS = ["gateways", *INSTANCES]
"""The clients with a Kafka listener, and a proxy before it, of their own: each worker, and both gateways together."""
_SPARE = [14, *range(16, 20), 24, *range(26, 30), 34, *range(36, 40), *range(44, 50)]
"""Offsets, in a block of ``Layout.free``, of ports that no part uses."""


class _Ports:
    """The use of the spare ports."""

    def __init__(self, layout: Layout) -> None:
        spare = iter(layout.kafka - 1 + offset for offset in _SPARE)
        self.listeners = {name: (next(spare), next(spare)) for name in KAFKA_CLIENTS}
        """Ports of a listener, and of the proxy whose address it advertises, by client."""
        self.redis, self.dynamodb = next(spare), next(spare)
        self.gateways = next(spare), next(spare)


class _Kafka(Kafka):
    def __init__(self, layout: Layout, ports: _Ports) -> None:
        super().__init__(layout)
        self._listeners = {name.upper().replace("-", ""): both for name, both in ports.listeners.items()}

    def prepare(self) -> None:
        super().prepare()
        lines = []
        for line in self.properties.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == "listeners":
                value += "".join(f",{who}://{HOST}:{port}" for who, (port, _) in self._listeners.items())
            elif name == "advertised.listeners":
                value += "".join(f",{who}://{HOST}:{proxy}" for who, (_, proxy) in self._listeners.items())
            elif name == "listener.security.protocol.map":
                value += "".join(f",{who}:PLAINTEXT" for who in self._listeners)
            elif name == "num.network.threads":
                value = "1"
            lines.append(f"{name}={value}\n")
        self.properties.write_text("".join(lines))


class _Redis(RedisNode):
    def __init__(self, layout: Layout, ports: _Ports) -> None:
        super().__init__(layout)
        self._proxy = ports.redis

    def prepare(self) -> None:
        super().prepare()
        with self.configuration.open("a") as file:
            file.write(f"cluster-announce-port {self._proxy}\n")


class CuttableStack(Stack):
    """A stack with two of each service, and a proxy on each way between services and engines, clients and gateways."""

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        self._ports = ports = _Ports(self.layout)
        self.kafka_proxies = {name: Proxy(proxy, port) for name, (port, proxy) in ports.listeners.items()}
        self.redis_proxy = Proxy(ports.redis, self.layout.redis)
        self.dynamodb_proxy = Proxy(ports.dynamodb, self.layout.dynamodb)
        self.gateway_proxies: dict[str, Proxy] = {}
        # On a disk DynamoDB Local stores a hundred messages a second; with -inMemory it would lose all when killed.
        shared_memory = Path("/dev/shm")
        self._database = tempfile.mkdtemp(prefix="chat-", dir=shared_memory if shared_memory.is_dir() else None)

    @property
    def urls(self) -> list[str]:
        """The WebSocket URLs of the two gateways, each behind its proxy."""
        parts = ((self.running[name].part, proxy) for name, proxy in self.gateway_proxies.items())
        return [part.url.replace(str(part.port), str(proxy.port)) for part, proxy in parts]

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        return self

    async def _start_all(self) -> None:
        layout, ports = self.layout, self._ports
        for proxy in (*self.kafka_proxies.values(), self.redis_proxy, self.dynamodb_proxy):
            await proxy.restore()
        database = DynamoDB(layout)
        database.command[database.command.index("-dbPath") + 1] = self._database
        parts: list[Part] = [_Kafka(layout, ports), _Redis(layout, ports), database]
        create_secret(layout)
        await asyncio.gather(*(self.start(part) for part in parts))
        await asyncio.to_thread(create_topics, layout)
        services = [Service(layout, name, n) for name in ("gateway", *WORKERS) for n in (1, 2)]
        for service in services:
            listener = "gateways" if service.name.startswith("gateway") else service.name
            service.environment |= {
                "CHAT_KAFKA": f"{HOST}:{ports.listeners[listener][1]}",
                "CHAT_REDIS": f"redis://{HOST}:{ports.redis}",
                "CHAT_DYNAMODB_ENDPOINT": f"http://{HOST}:{ports.dynamodb}",
            }
        await asyncio.gather(*(self.start(service) for service in services))
        for service, port in zip(services[:2], ports.gateways, strict=True):
            proxy = self.gateway_proxies[service.name] = Proxy(port, service.port)
            await proxy.restore()

    async def __aexit__(self, *details: object) -> None:
        try:
            await super().__aexit__(*details)
        finally:
            for proxy in (*self.gateway_proxies.values(), *self.kafka_proxies.values()):
                proxy.cut()
            self.redis_proxy.cut()
            self.dynamodb_proxy.cut()
            shutil.rmtree(self._database, ignore_errors=True)
