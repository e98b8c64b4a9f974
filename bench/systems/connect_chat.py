"""Connect Chat: the whole local stack on free ports, and a bare WebSocket client."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from redis.asyncio import Redis

from bench.links import MARK, Link, LinkError
from bench.systems import System, output
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import mint
from docker.local.layout import HOST, ROOT, Layout, create_secret
from docker.local.part import Part, Running
from docker.local.parts import Service, create_topics, engines
from docker.local.probes import websocket_frame
from tables.inbox import keys

TOKEN_S = 7_200
DEVICE = "bench"
SERVICES = ("gateway", "messaging", "notification")
AT_ONCE = 100
POLL = 0.002
SETTINGS = {
    "CHAT_INBOX_MESSAGES": "2000000",
    "CHAT_INBOX_BYTES": str(2**32),
    **{
        f"CHAT_{name}": "1000000000"
        for name in ("SEND_RATE", "SEND_BURST", "SEND_BYTES_RATE", "SEND_BYTES_BURST", "CONNECT_RATE", "CONNECT_BURST")
    },
}
"""Settings that lift the quotas and the rate limits of a user; everything else is as in ``make up``."""


def send_object(to: str, number: int, content: bytes) -> bytes:
    """Return a ``send``; its id holds a ``~``, by which confirmations are counted."""
    return b'{"type":"send","id":"~%d","to":"%b","body":%b}' % (number, to.encode(), content)


class ChatLink(Link):
    """A connection after its welcome; it acknowledges ``messages`` once for each piece of data that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._have = self._need = 0

    def frame(self, to: str, number: int, content: bytes) -> bytes:
        """Return a text frame with one ``send``."""
        return websocket_frame(send_object(to, number, content))

    def frames(self, messages: Sequence[tuple[str, int, bytes]], array: int = 1) -> list[bytes]:
        """Return text frames with one ``send`` each, or with arrays of them."""
        if array == 1:
            return [self.frame(*message) for message in messages]
        return [
            websocket_frame(b"[%b]" % b",".join(send_object(*message) for message in messages[start : start + array]))
            for start in range(0, len(messages), array)
        ]

    def feed(self, data: bytes) -> None:
        """Handle the frames that are complete."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        data = b"".join(self._pieces) if len(self._pieces) > 1 else data
        at, end, acks = 0, len(data), []
        self._need = 2
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            self._need = start - at + size
            if end < at + self._need:
                break
            content = data[start : start + size]
            if (position := self._take(data[at] & 0x0F, content)) is not None:
                acks.append(position)
            at, self._need = start + size, 2
        self._pieces, self._have = [data[at:]], end - at
        if acks:
            # Acknowledgements are cumulative: the last one of a piece stands for all.
            self.transport.write(websocket_frame(b'{"type":"ack","pos":"%b"}' % acks[-1]))

    def _take(self, opcode: int, content: bytes) -> bytes | None:
        if opcode == 9:
            self.transport.write(websocket_frame(content, 10))
        elif opcode == 8:
            code = int.from_bytes(content[:2], "big")
            raise LinkError(f"closed with {code}: {content[2:].decode(errors='replace')}")
        elif content.startswith(b'{"type":"messages"'):
            self.received += content.count(MARK)
            start = content.index(b'"until":"') + 9
            return content[start : content.index(b'"', start)]
        elif b'"error"' in content or b'"missed"' in content:
            raise LinkError(content[:300].decode(errors="replace"))
        else:
            self.confirmed += content.count(b"~")
        return None


class ConnectChat(System):
    """Kafka, Redis and the services as plain processes; the history worker only when a workload starts it."""

    name: ClassVar[str] = "connect_chat"
    title: ClassVar[str] = "Connect Chat"
    array: ClassVar[int] = 50
    promise: ClassVar[str] = (
        "`sent`: the message is in Kafka's log (`acks=all`, idempotent producer; one replica here). Kafka writes to "
        "the page cache and leaves the fsync to the kernel; Redis, which is filled behind the log, writes an "
        "append-only file with one fsync a second, and what it loses is applied again from the log."
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.layout = Layout.free(folder)
        self.running: dict[str, Running] = {}
        self.redis: Redis
        self._tokens: dict[str, str] = {}
        self._key = ""

    @classmethod
    def version(cls) -> str:
        """Return the commit."""
        return output(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]).strip() or "unknown"

    async def start(self) -> None:
        """Start all but the history worker."""
        create_secret(self.layout)
        self._key = Settings(jwt_secret_file=self.layout.secret_file).jwt_key()
        await asyncio.gather(*(self._start(part) for part in _for_the_bench(engines(self.layout))))
        await asyncio.to_thread(create_topics, self.layout)
        await asyncio.gather(*(self.start_service(name) for name in SERVICES))
        self.redis = Redis(host=HOST, port=self.layout.redis)

    async def start_service(self, name: str) -> None:
        """Start one more service, such as ``history``."""
        service = Service(self.layout, name)
        service.environment |= SETTINGS
        await self._start(service)

    def stop_service(self, name: str) -> None:
        """Kill one service."""
        self.running.pop(name).kill()

    async def _start(self, part: Part) -> None:
        await asyncio.to_thread(part.prepare)
        running = self.running[part.name] = part.start()
        await running.wait_ready()

    async def stop(self) -> None:
        """Kill everything; the data is thrown away, so nothing needs time for an orderly end."""
        if hasattr(self, "redis"):
            await self.redis.aclose()
        for running in self.running.values():
            running.kill()
        self.running.clear()

    def processes(self) -> dict[str, int]:
        """Return the pids of all engines and services."""
        return {name: running.pid for name, running in self.running.items() if running.alive}

    def _token(self, user: str) -> str:
        if user not in self._tokens:
            self._tokens[user] = mint(self._key, user, TOKEN_S)
        return self._tokens[user]

    async def prepare(self, users: Sequence[str]) -> None:
        """Make the users' tokens now: their making is not part of what is measured."""
        for user in users:
            self._token(user)

    async def connect(self, user: str, *, receive: bool, device: str = DEVICE) -> ChatLink:
        """Connect a WebSocket up to its welcome; the server then sends what the inbox holds by itself."""
        link = ChatLink()
        await link.dial(self.layout.gateway)
        key = base64.b64encode(os.urandom(16)).decode()
        link.write(
            f"GET /v1/connect HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat.v1\r\n\r\n".encode()
        )
        answer = await link.expect(rb"^HTTP/1.1 (\d+).*?\r\n\r\n")
        if answer[1] != b"101":
            raise LinkError(f"the gateway answered {answer[1].decode()}")
        hello = f'{{"type":"hello","token":"{self._token(user)}","device":"{device}"}}'
        link.write(websocket_frame(hello.encode()))
        await link.expect(rb'"type":"welcome".*?\}')
        link.ready()
        return link

    async def stored(self, counts: dict[str, int]) -> None:
        """Wait until the inboxes hold these numbers of messages, reading their lengths from Redis itself."""
        await self._lengths(list(counts), lambda user, found: found >= counts[user])

    async def emptied(self, links: dict[str, Link]) -> None:
        """Wait until the inboxes are empty, reading their lengths from Redis itself."""
        await self._lengths(list(links), lambda _, found: found == 0)

    async def _lengths(self, users: list[str], fits: Callable[[str, int], bool]) -> None:
        # Asking costs Redis and this process time that is measured: one user is polled, the others are asked once or
        # twice.
        while users:
            while not fits(users[0], await self.redis.xlen(keys(users[0])[0])):
                await asyncio.sleep(POLL)
            asked, rest = users[:AT_ONCE], users[AT_ONCE:]
            pipeline = self.redis.pipeline(transaction=False)
            for user in asked:
                pipeline.xlen(keys(user)[0])
            found = await pipeline.execute()
            users = [user for user, count in zip(asked, found, strict=True) if not fits(user, count)] + rest

    async def inspect(self, user: str) -> dict[str, float]:
        """Return a message's bytes in Redis: in the inbox's stream, over all keys of the user, and of its JSON."""
        inbox, devices = keys(user)
        count = await self.redis.xlen(inbox)
        stream: Any = await self.redis.memory_usage(inbox, samples=0)
        whole = 0
        async for key in self.redis.scan_iter(match=devices.rpartition(":")[0] + ":*", count=10_000):
            whole += int(await self.redis.memory_usage(key, samples=0) or 0)
        answer: Any = await self.redis.xrange(inbox, count=1)
        ((_, fields),) = answer
        size = len(fields[b"m"])
        return {
            "json_bytes": size,
            "redis_stream_bytes": stream / count,
            "redis_bytes": whole / count,
            "redis_stream_over_json": stream / count / size,
            "redis_over_json": whole / count / size,
        }


def _for_the_bench(parts: list[Part]) -> list[Part]:
    for part in parts:
        if part.name == "dynamodb":
            # On disk, DynamoDB Local stores a hundred messages a second.
            index = part.command.index("-dbPath")
            part.command[index : index + 2] = ["-inMemory"]
        elif part.name == "kafka":
            # The heap has its full size from the start, as a production broker's. One that grows, mostly by garbage,
            # would count as memory of the connections opened meanwhile.
            index = next(n for n, option in enumerate(part.command) if option.startswith("-Xmx"))
            part.command[index:index] = [part.command[index].replace("-Xmx", "-Xms"), "-XX:+AlwaysPreTouch"]
    return parts
