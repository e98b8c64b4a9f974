"""The watch on topics that are deleted and made again while a process runs: what it knows of their offsets is void.

The new topic begins at offset 0, in the same generation: its messages have positions that inboxes have passed, and
would be dropped as repeats (``generations.py``).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NoReturn, TypeVar

import structlog
from aiokafka.admin import AIOKafkaAdminClient

from chat_streams.kafka.client import KAFKA_AWAY, REQUEST_SECONDS, client_options
from chat_streams.kafka.metadata import TopicMetadata, topics_of
from chat_streams.kafka.names import DEAD_LETTERS, LOSSES, SERVICE_STATS
from chat_streams.kafka.topics import NEEDS, largest_records
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings

log = structlog.get_logger()

T = TypeVar("T")

LOOK_SECONDS: Final = 10.0
"""Seconds between two looks, about: a request for metadata each, of the topics of one service."""
AGAIN_SECONDS: Final = 1.0
"""Seconds between two looks while there is a suspicion, and Kafka does not answer."""
LIMIT_SECONDS: Final = 1.0
"""Seconds for which a topic's limit is taken for what it was."""
UNWATCHED: Final = frozenset({DEAD_LETTERS, LOSSES, SERVICE_STATS})
"""Topics that are only written, or of which nobody keeps an offset."""


def made_anew(ids: Mapping[str, str], found: Mapping[str, TopicMetadata]) -> list[str]:
    """Return the topics that exist under another id than they had; one that is missing may only be so for a moment."""
    return sorted(name for name, topic in found.items() if topic.id != ids[name])


class TopicWatch:
    """Looks every few seconds whether a service's topics are still those it began with, by one client.

    A Kafka that is away, or a topic that is missing, ends nothing.

    Args:
        settings: Settings of the process.
        service: Name of the service, as in ``NEEDS``.
        ids: Kafka's ids of the topics at the start of the process (``Log.topics``).
    """

    def __init__(self, settings: Settings, service: str, ids: Mapping[str, str]) -> None:
        self._settings = settings
        self._ids = {name: ids[name] for name in sorted(NEEDS[service].keys() - UNWATCHED) if name in ids}
        self._client: AIOKafkaAdminClient | None = None
        self._lock = asyncio.Lock()
        self._missing: set[str] = set()
        self._limits: dict[str, tuple[int, float]] = {}
        self._suspicion = ""
        self._suspected = asyncio.Event()

    def suspect(self, reason: str) -> None:
        """Look at once; if the topics are the same, ``reason`` is what ``run`` ends with."""
        self._suspicion = self._suspicion or reason
        self._suspected.set()

    async def look(self) -> None:
        """Raise ``TopicsError`` if a topic was made anew; raises ``KafkaError`` and ``TimeoutError``."""
        async with self._lock:
            found, _ = await self._ask(lambda client: topics_of(client, list(self._ids)))
        missing = self._ids.keys() - found.keys()
        if missing - self._missing:
            log.error("a topic is missing", topics=sorted(missing))
        self._missing = missing
        if names := made_anew(self._ids, found):
            raise TopicsError(
                f"topic {', '.join(names)} was deleted and made anew while this process ran, so its records would be"
                " taken for old ones: run 'faust -A chat_streams topics create', then start all services again"
            )

    async def largest_record(self, topic: str) -> int:
        """Return the size of the largest record that a topic takes; asks Kafka once in a while only.

        Raises ``KafkaError``, ``TimeoutError`` and, where Kafka says nothing of the topic, ``TopicsError``.
        """
        # All partitions may ask at once: the first one's answer is for those who waited, too.
        async with self._lock:
            known, at = self._limits.get(topic, (0, -math.inf))
            if time.monotonic() - at < LIMIT_SECONDS:
                return known
            limit = (await self._ask(lambda client: largest_records(client, [topic]))).get(topic)
            if limit is None:
                raise TopicsError(f"Kafka says nothing of the configuration of topic {topic}")
            self._limits[topic] = limit, time.monotonic()
            return limit

    async def run(self) -> NoReturn:
        """Look until a topic was made anew, then raise ``TopicsError``; cancel it to end it."""
        try:
            while True:
                wait_s = AGAIN_SECONDS if self._suspicion else LOOK_SECONDS * random.uniform(0.8, 1.2)
                try:
                    async with asyncio.timeout(wait_s):
                        await self._suspected.wait()
                except TimeoutError:
                    pass
                self._suspected.clear()
                try:
                    await self.look()
                except KAFKA_AWAY as error:
                    log.warning("whether topics were made anew cannot be seen, waiting", error=repr(error))
                    continue
                if self._suspicion:
                    raise TopicsError(self._suspicion)
        finally:
            await self.close()

    async def close(self) -> None:
        """Disconnect; the next look connects again."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(self, request: Callable[[AIOKafkaAdminClient], Awaitable[T]]) -> T:
        """Make a request, connected, within its time; the lock is held."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await request(await self._connected())
        except BaseException:
            await self.close()
            raise

    async def _connected(self) -> AIOKafkaAdminClient:
        if self._client is None:
            self._client = AIOKafkaAdminClient(
                **client_options(self._settings), request_timeout_ms=int(REQUEST_SECONDS * 1000)
            )
            await self._client.start()
        return self._client
