"""The client that reads partitions for the workers and for a gateway's slot: aiokafka's consumer, by its public API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from chat_streams.compat.aiokafka import disconnect, fetcher_has_ended
from chat_streams.kafka.client import KAFKA_AWAY
from chat_streams.kafka.names import MAX_RECORD
from chat_streams.model.errors import ConsumerEnded
from chat_streams.runtime.tasks import raise_if_cancelled, spawn, uncancelled

log = structlog.get_logger()

P = TypeVar("P", bound=tuple[str, int])
"""A topic and a partition: aiokafka's ``TopicPartition`` or Faust's ``TP``, which are equal and hash alike."""
Records = dict[TopicPartition, list[Any]]

FETCH_BYTES: Final = 8 * 1024 * 1024
"""The largest answer to one fetch. aiokafka holds at most one answer for each partition beside what was polled."""
FETCH_WAIT_MS: Final = 250
"""aiokafka has one fetch under way to a broker. One that was sent while records of a partition waited to be polled asks
for the other partitions only, and where those have no news it is answered after this time; so long, nothing more comes
of the first. Faust's 1,500 ms made 50,000 messages for 10,000 users take 3 s, of which nobody did anything in one."""
START_SECONDS: Final = 30.0
REQUEST_SECONDS: Final = 10.0
STOP_SECONDS: Final = 3.0


class Consumer:
    """A connection that reads partitions, assigned by hand or by a consumer group, between ``start`` and ``stop``.

    Args:
        client_options: Addresses, TLS and login, as ``kafka.client.client_options`` returns them.
        more: Further options of ``AIOKafkaConsumer``, such as ``group_id``.
    """

    def __init__(self, client_options: Mapping[str, Any], **more: Any) -> None:
        self._client_options = dict(client_options)
        self._more = more
        self._group: str | None = more.get("group_id")
        self._started: AIOKafkaConsumer | None = None

    @property
    def _client(self) -> AIOKafkaConsumer:
        if self._started is None:
            raise ConsumerEnded("the consumer has not started")
        return self._started

    async def start(self) -> None:
        """Connect; raises ``KafkaError`` and ``TimeoutError``."""
        self._started = AIOKafkaConsumer(
            **self._client_options,
            **{
                "enable_auto_commit": False,
                "request_timeout_ms": int(1000 * START_SECONDS),
                "fetch_max_wait_ms": FETCH_WAIT_MS,
                "fetch_max_bytes": FETCH_BYTES,
                "max_partition_fetch_bytes": MAX_RECORD,
                **self._more,
            },
        )
        # Cancelled while it connects, aiokafka loses sight of the connection, which says so when it is collected: a
        # gateway that found its port taken ended with two lines.
        starting = spawn("start a consumer", self._client.start(), None)
        try:
            async with asyncio.timeout(START_SECONDS):
                await uncancelled(asyncio.shield(starting))
        except BaseException:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + STOP_SECONDS
            await asyncio.wait([starting], timeout=STOP_SECONDS)
            starting.cancel()
            await self._stop(deadline - loop.time())
            raise

    async def stop(self) -> None:
        """Leave the group and disconnect; what Kafka has not answered within 3 s is not waited for."""
        await self._stop(STOP_SECONDS)

    async def _stop(self, within_s: float) -> None:
        if self._started is None:
            return
        try:
            async with asyncio.timeout(within_s):
                await self._started.stop()
        except (*KAFKA_AWAY, asyncio.CancelledError) as error:
            await disconnect(self._started)
            raise_if_cancelled(error)
            log.warning("a consumer did not stop in order", error=repr(error))

    def subscribe(self, topics: Iterable[str], listener: ConsumerRebalanceListener) -> None:
        """Join the group for some topics; ``listener`` is told of every rebalance."""
        self._client.subscribe(topics=list(topics), listener=listener)

    def assign(self, topic: str, partition: int) -> None:
        """Read one partition from where ``auto_offset_reset`` says."""
        self._client.assign([TopicPartition(topic, partition)])

    async def assign_end(self, topic: str, partition: int) -> None:
        """Read one partition from its end, known when this returns; raises ``KafkaError`` and ``TimeoutError``."""
        tp = TopicPartition(topic, partition)
        async with asyncio.timeout(START_SECONDS):
            self._client.assign([tp])
            await uncancelled(self._client.seek_to_end(tp))
            await uncancelled(self._client.position(tp))

    async def poll(self, wait_s: float, most: int, of: Iterable[tuple[str, int]] = ()) -> Records:
        """Return at most ``most`` records that have arrived, after at most ``wait_s`` s, by partition.

        Of ``of`` if given, else of all partitions that are not paused. The call is cheap to cancel: nothing is lost.

        Raises:
            ConsumerEnded: Nothing can come any more; only a new process helps.
            KafkaError: Something a later call may not meet, such as a missing permission.
        """
        tps = [TopicPartition(*tp) for tp in of]
        try:
            polling = self._client.getmany(*tps, timeout_ms=int(1000 * wait_s), max_records=most)
            records: Records = await uncancelled(polling)
        except ConsumerStoppedError as error:
            raise ConsumerEnded("the consumer was stopped") from error
        except KafkaError as error:
            # aiokafka raises the base class where its coordination has ended by an error it does not know.
            if type(error) is KafkaError:
                raise ConsumerEnded(f"the consumer's coordination has ended: {error}") from error
            raise
        if fetcher_has_ended(self._client):
            raise ConsumerEnded("the consumer has ended by an error")
        return records

    def seek(self, tp: tuple[str, int], offset: int) -> None:
        """Read a partition from an offset on; nothing happens if it is no longer assigned."""
        if tp in self.assignment():
            self._client.seek(TopicPartition(*tp), offset)

    def pause(self, tps: Iterable[tuple[str, int]]) -> None:
        """Fetch nothing of these partitions, as far as they are assigned."""
        self._client.pause(*self._assigned(tps))

    def resume(self, tps: Iterable[tuple[str, int]]) -> None:
        """Fetch these partitions again, as far as they are assigned."""
        self._client.resume(*self._assigned(tps))

    def _assigned(self, tps: Iterable[tuple[str, int]]) -> list[TopicPartition]:
        assigned = self.assignment()
        return [TopicPartition(*tp) for tp in tps if tp in assigned]

    def assignment(self) -> set[TopicPartition]:
        """Return the partitions that are assigned."""
        return set() if self._started is None else set(self._started.assignment())

    def highwater(self, tp: tuple[str, int]) -> int | None:
        """Return where a partition ended at its last fetch; ``None`` before that, and where it is not assigned."""
        return self._client.highwater(TopicPartition(*tp)) if tp in self.assignment() else None

    def partition_count(self, topic: str) -> int | None:
        """Return the number of partitions of a topic, if it is known here."""
        partitions = self._client.partitions_for_topic(topic)
        return None if partitions is None else len(partitions)

    async def beginnings(self, tps: Iterable[P]) -> dict[P, int]:
        """Return the first offset that the log still has, by partition; raises ``KafkaError``, ``TimeoutError``."""
        async with asyncio.timeout(REQUEST_SECONDS):
            found = await uncancelled(self._client.beginning_offsets([TopicPartition(*tp) for tp in tps]))
        return {tp: found[tp] for tp in tps}

    async def ends(self, tps: Iterable[P]) -> dict[P, int]:
        """Return the offset of the next record, by partition; raises ``KafkaError``, ``TimeoutError``."""
        async with asyncio.timeout(REQUEST_SECONDS):
            found = await uncancelled(self._client.end_offsets([TopicPartition(*tp) for tp in tps]))
        return {tp: found[tp] for tp in tps}

    async def committed(self, tps: Iterable[P]) -> dict[P, OffsetAndMetadata]:
        """Return what the group has committed, for the partitions of which it has; raises what ``beginnings`` raises.

        By the admin client: the consumer's ``committed()`` returns no metadata.
        """
        wanted = [TopicPartition(*tp) for tp in tps]
        if not wanted:
            return {}
        admin = AIOKafkaAdminClient(**self._client_options)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await admin.start()
                found = await admin.list_consumer_group_offsets(self._group, partitions=wanted)
        finally:
            await admin.close()
        # The admin client does not look at an error for the whole request: then the answer names no partition.
        if missing := set(wanted) - found.keys():
            raise KafkaError(f"the group's coordinator said nothing about {missing}")
        return {tp: found[tp] for tp in tps if found[tp].offset >= 0}

    async def commit(self, offsets: Mapping[P, OffsetAndMetadata], within_s: float) -> bool:
        """Commit; returns whether Kafka took it, which it does from the owner of the partitions only."""
        try:
            async with asyncio.timeout(within_s):
                await uncancelled(self._client.commit({TopicPartition(*tp): o for tp, o in offsets.items()}))
        except (CommitFailedError, IllegalStateError) as error:
            log.info("not committed, the partitions moved on", error=repr(error))
            return False
        except KAFKA_AWAY as error:
            log.warning("not committed, will be tried again", error=repr(error))
            return False
        return True
