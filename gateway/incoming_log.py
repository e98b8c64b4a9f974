"""The log of messages as a gateway reads it: where it ends, and how far the history service has come in it."""

from __future__ import annotations

import asyncio
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, KafkaTimeoutError
from aiokafka.structs import TopicPartition

from chat_streams.kafka.client import REQUEST_SECONDS, client_options
from chat_streams.kafka.names import HISTORY, INCOMING_MESSAGES, partition_of
from chat_streams.model.errors import BeyondLog, HistoryUnavailable, KafkaUnavailable
from chat_streams.model.position import MAX_INDEX, ORIGIN, Position
from chat_streams.runtime.settings import Settings

HISTORY_LOOK_SECONDS: Final = 0.2


class IncomingLog:
    """Answers questions about ``incoming_messages``, between ``start`` and ``stop``."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._generation = 0
        self._consumer: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._connecting = asyncio.Lock()

    async def start(self, generation: int) -> None:
        """Connect, to the log of a generation; raises ``KafkaError``."""
        self._generation = generation
        self._consumer = AIOKafkaConsumer(**client_options(self._settings), enable_auto_commit=False)
        await self._consumer.start()

    async def stop(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()
        if self._admin is not None:
            await self._admin.close()

    async def ends(self) -> dict[int, int]:
        """Return the offset of the next record of each partition; raises ``KafkaError``."""
        assert self._consumer is not None
        tps = [TopicPartition(INCOMING_MESSAGES, partition) for partition in range(self._settings.partitions)]
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return {tp.partition: end for tp, end in (await self._consumer.end_offsets(tps)).items()}
        except TimeoutError as error:
            raise KafkaTimeoutError(f"the end of {INCOMING_MESSAGES} is not known") from error

    async def end(self, partition: int) -> Position:
        """A position above all in a partition of the log and below all to come; raises ``KafkaUnavailable``."""
        assert self._consumer is not None
        tp = TopicPartition(INCOMING_MESSAGES, partition)
        try:
            async with asyncio.timeout(self._settings.engine_timeout):
                end = (await self._consumer.end_offsets([tp]))[tp]
        except (KafkaError, TimeoutError) as error:
            raise KafkaUnavailable(f"the log's end is not known: {error!r}") from error
        # Not (end, 0): that is the address of the next message.
        return Position.of(self._generation, end - 1, MAX_INDEX) if end else ORIGIN

    async def wait_for_history(self, user: str, until: Position) -> None:
        """Return once the chat database has all up to ``until`` of a user's inbox that is in the log by now.

        Raises ``HistoryUnavailable`` when it has not after ``engine_timeout``, and ``BeyondLog``.
        """
        if until.generation < self._generation:
            return  # All of an earlier log was written before this one began.
        tp = TopicPartition(INCOMING_MESSAGES, partition_of(user, self._settings.partitions))
        try:
            if until > await self.end(tp.partition):
                raise BeyondLog(f"{until} is above all that the log holds")
            async with asyncio.timeout(self._settings.engine_timeout):
                admin = await self._connected_admin()
                while (await admin.list_consumer_group_offsets(HISTORY, partitions=[tp]))[tp].offset <= until.offset:
                    await asyncio.sleep(HISTORY_LOOK_SECONDS)
        except (KafkaUnavailable, KafkaError, TimeoutError, OSError) as error:
            raise HistoryUnavailable(f"the history of {user} is not written up to {until} yet") from error

    async def _connected_admin(self) -> AIOKafkaAdminClient:
        """Return the one admin client of this process; it connects when it is first needed, and again by itself."""
        async with self._connecting:
            if self._admin is None:
                admin = AIOKafkaAdminClient(**client_options(self._settings))
                try:
                    await admin.start()
                except BaseException:
                    await admin.close()
                    raise
                self._admin = admin
            return self._admin
