"""A stand-in for the nodes of a Redis cluster: sockets that speak its protocol, and answer what a test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import hiredis

HOST = "127.0.0.1"
SLOTS = 16_384
OK = b"+OK\r\n"

Answer = Callable[[list[bytes]], Awaitable[bytes]]


async def one(_: list[bytes]) -> bytes:
    """Answer 1 to every function call."""
    return b":1\r\n"


class Node:
    """One server; ``answer`` is what it says to function calls."""

    def __init__(self, cluster: FakeRedis) -> None:
        self.answer: Answer = one
        self.asked: Counter[str] = Counter()
        self.connections: set[asyncio.StreamWriter] = set()
        self._cluster = cluster
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen, on the same port if it did before."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and reset those there are."""
        assert self._server is not None
        self._server.close()
        for writer in list(self.connections):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.add(writer)
        requests = hiredis.Reader()
        try:
            while data := await reader.read(65_536):
                requests.feed(data)
                while (command := requests.gets()) is not False:
                    writer.write(await self._reply(command))
        except ConnectionError:
            pass
        finally:
            self.connections.discard(writer)
            writer.close()

    async def _reply(self, command: list[bytes]) -> bytes:
        name = command[0].decode()
        self.asked[name] += 1
        match name:
            case "CLUSTER":
                return self._cluster.slots()
            case "COMMAND":
                return b"*0\r\n"
            case "HELLO":
                return b"%1\r\n+proto\r\n:3\r\n"
            case "FCALL" | "FCALL_RO":
                return await self.answer(command)
            case _:
                return OK


class FakeRedis:
    """Two nodes; ``owner`` says which of them has the lower half of the hash slots, and which the upper one."""

    def __init__(self) -> None:
        self.nodes = [Node(self), Node(self)]
        self.owner = [0, 1]

    async def __aenter__(self) -> FakeRedis:
        for node in self.nodes:
            await node.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        for node in self.nodes:
            await node.stop()

    def slots(self) -> bytes:
        """Return the answer to CLUSTER SLOTS."""
        ranges = [(0, SLOTS // 2 - 1), (SLOTS // 2, SLOTS - 1)]
        text = f"*{len(ranges)}\r\n"
        for (first, last), owner in zip(ranges, self.owner, strict=True):
            text += f"*3\r\n:{first}\r\n:{last}\r\n*2\r\n${len(HOST)}\r\n{HOST}\r\n:{self.nodes[owner].port}\r\n"
        return text.encode()
