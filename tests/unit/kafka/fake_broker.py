"""A Kafka of one broker in this process: slow, silent, paused or refusing; it checks sequences as Kafka does."""

from __future__ import annotations

import asyncio
import contextlib
import io
import struct
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiokafka.protocol.admin import ApiVersionResponse_v0
from aiokafka.protocol.api import RequestHeader_v1
from aiokafka.protocol.metadata import MetadataRequest_v1, MetadataResponse_v1
from aiokafka.protocol.produce import ProduceRequest_v3, ProduceResponse_v3
from aiokafka.protocol.transaction import InitProducerIdResponse_v0
from aiokafka.record.memory_records import MemoryRecords

PRODUCE, METADATA, API_VERSIONS, INIT_PRODUCER_ID = 0, 3, 18, 22
OUT_OF_ORDER, TOO_LARGE, NOT_AUTHORIZED, NOT_ENOUGH_REPLICAS = 45, 10, 29, 19
TOPIC, PARTITIONS = "incoming_messages", 4

Place = tuple[str, int]


class FakeBroker:
    """As much of Kafka as a producer of aiokafka needs."""

    def __init__(self) -> None:
        self.address = ""
        self.log: defaultdict[Place, list[bytes]] = defaultdict(list)
        self.requests: list[dict[Place, list[bytes]]] = []
        self.received: list[int] = []
        """The sizes of all requests that came whole."""
        self.refuse: Callable[[str, int, list[bytes]], int] = lambda topic, partition, values: 0
        self.reads = asyncio.Event()
        """Cleared: what is sent stays in the buffers, as with a paused broker."""
        self.appends = asyncio.Event()
        """Cleared: requests are received, and neither carried out nor answered."""
        self.answers = True
        self.reads.set()
        self.appends.set()
        self._next_sequence: defaultdict[tuple[int, Place], int] = defaultdict(int)
        self._producers = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def connections(self) -> int:
        return len(self._writers)

    @property
    def producers(self) -> int:
        """Clients that connected so far."""
        return self._producers

    async def listen(self, port: int = 0) -> None:
        # A small buffer, so that a paused broker leaves most of a batch with its sender.
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, limit=4_096)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def go_away(self) -> None:
        """Close all connections and take no more."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()

    async def come_back(self) -> None:
        await self.listen(int(self.address.rpartition(":")[2]))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    (size,) = struct.unpack(">i", await reader.readexactly(4))
                    body = bytearray()
                    while len(body) < size:
                        await self.reads.wait()
                        if not (part := await reader.read(min(65_536, size - len(body)))):
                            return
                        body += part
                    self.received.append(size)
                    for _ in range(3):
                        # What was received when its sender was cut off is beyond the sender: here it is let go.
                        await asyncio.sleep(0)
                    if reader.exception() is not None:
                        return
                    await self._handle(io.BytesIO(bytes(body)), writer)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _handle(self, request: io.BytesIO, writer: asyncio.StreamWriter) -> None:
        key, _, correlation, _ = RequestHeader_v1.SCHEMA.decode(request)
        answer: Any
        if key == API_VERSIONS:
            versions = [(PRODUCE, 3, 3), (METADATA, 1, 1), (API_VERSIONS, 0, 0), (INIT_PRODUCER_ID, 0, 0)]
            answer = ApiVersionResponse_v0(0, versions)
        elif key == METADATA:
            topics = [topic for topic in MetadataRequest_v1.decode(request).topics or [TOPIC] if topic != "unknown"]
            host, _, port = self.address.rpartition(":")
            partitions = [(0, partition, 0, [0], [0]) for partition in range(PARTITIONS)]
            described = [(0, topic, False, partitions) for topic in topics]
            answer = MetadataResponse_v1([(0, host, int(port), None)], 0, described)
        elif key == INIT_PRODUCER_ID:
            self._producers += 1
            answer = InitProducerIdResponse_v0(0, 0, self._producers, 0)
        else:
            answer = await self._produce(ProduceRequest_v3.decode(request))
            if not self.answers:
                return
        body = struct.pack(">i", correlation) + answer.encode()
        writer.write(struct.pack(">i", len(body)) + body)

    async def _produce(self, request: Any) -> ProduceResponse_v3:
        batches = {(topic, p): data for topic, partitions in request.topics for p, data in partitions}
        await self.appends.wait()
        self.requests.append({})
        answers = defaultdict(list)
        for place, data in batches.items():
            batch = MemoryRecords(data).next_batch()
            assert batch is not None
            values = [record.value for record in batch]
            self.requests[-1][place] = values
            sequence = (batch.producer_id, place)
            expected, base = self._next_sequence[sequence], batch.base_sequence
            offset = len(self.log[place])
            if error := self.refuse(*place, values):
                offset = -1
            elif base > expected:
                error, offset = OUT_OF_ORDER, -1
            elif base == expected:
                self.log[place] += values
                self._next_sequence[sequence] += len(values)
            answers[place[0]].append((place[1], error, offset, -1))
        return ProduceResponse_v3(list(answers.items()), 0)


@contextlib.asynccontextmanager
async def fake_broker() -> AsyncIterator[FakeBroker]:
    """A broker that listens."""
    broker = FakeBroker()
    await broker.listen()
    try:
        yield broker
    finally:
        await broker.go_away()
