"""Repartitioning: more partitions for the topics keyed by user, while all services run and without losing a message.

A topic is never grown in place: its users would change partitions, and a user's messages on the old partition could be
applied after newer ones on the new partition. Instead the log is closed, applied to its end, and continued in topics of
the next version and generation:

1. It is announced in ``log_generations``. Gateways hear it (``kafka/log_notices.py``) and write nothing to the log any
   more: they answer a send with an error that may be retried, and clients send again under the same id. The services
   that read go on, and so does what they write themselves.
2. Once all of the log is applied, and nothing has come between two looks, Kafka refuses records for it
   (``max.message.bytes``), also those of a gateway that has not heard. If something had come by then, it is opened, and
   waited for again.
3. Once all is applied, and nothing has come between two looks more, the new topics are created and noted in
   ``log_generations``. Services started with the new settings use them; a service with the old settings can no longer
   write a message, and is refused when it starts.

Until the note of step 3 everything can be undone, and is undone if it takes too long or fails. One that was killed
leaves the log closed; running it again goes on, or undoes it. ``repartition_steps.py`` decides what is next.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from chat_streams.kafka import generations, names, topics
from chat_streams.kafka.client import KAFKA_AWAY, Admin, client_options
from chat_streams.kafka.consumer import Consumer
from chat_streams.kafka.generations import Generation
from chat_streams.kafka.names import Names
from chat_streams.kafka.producer import KafkaProducer, ProducerRecord, connected
from chat_streams.kafka.topics import CLOSED_BYTES, Topic
from chat_streams.model.errors import TopicsError
from chat_streams.model.records import INCOMING, Messages
from chat_streams.operations.lag_reader import GROUPS
from chat_streams.operations.repartition_steps import Action, Ends, Stage, Steps
from chat_streams.processing.consumer import checkpoint_of
from chat_streams.runtime.settings import Settings

LOOK_SECONDS: Final = 0.2
"""Seconds between two looks, and between two questions of one look."""
APPLIED_SECONDS: Final = 5.0
"""Seconds that a look waits for the readers to commit what it wrote; after that it counts as not applied."""
CLOSED_WITHIN: Final = 30.0
UNDONE_WITHIN: Final = 10.0
NOTHING: Final = ProducerRecord(None, INCOMING.encode(Messages(())))
"""A record without messages: services apply it, and nothing happens."""
TOO_LARGE_IF_CLOSED: Final = NOTHING._replace(headers=[("padding", bytes(CLOSED_BYTES))])
_STEP_ERRORS: Final = (TopicsError, *KAFKA_AWAY)


class Plan(NamedTuple):
    """A repartition to be done: the topic to close, the topics to create, and their version and generation."""

    old: Topic
    new: list[Topic]
    version: int
    current: Generation
    ids: Mapping[str, str]
    """Kafka's ids of the topics that are now, by name."""

    @property
    def generation(self) -> int:
        """The generation of the new log."""
        return self.current.generation + 1

    @property
    def stage(self) -> Stage:
        """The stage of the log before it: announced where a repartition was interrupted, at whatever step."""
        return Stage.ANNOUNCED if self.current.closing else Stage.OPEN

    @property
    def settings(self) -> dict[str, str]:
        """The settings to start all services with afterwards."""
        return {"CHAT_TOPICS_VERSION": str(self.version), "CHAT_PARTITIONS": str(self.new[0].partitions)}


class Status(NamedTuple):
    """The state of a repartition: its stage, what was done last, and after how many seconds."""

    stage: Stage
    text: str
    seconds: float


Say = Callable[[Status], None]


async def plan(settings: Settings, partitions: int) -> Plan:
    """Return what a repartition would do; raises ``TopicsError`` when it can't be done."""
    log = await topics.check(settings)
    if partitions <= log.partitions:
        raise TopicsError(f"the log has {log.partitions} partitions: more are wanted, not {partitions}")
    version = names.VERSION + 1
    new = topics.of_users(settings, version, partitions)
    async with Admin(settings) as admin:
        for topic, found in zip(new, await admin.describe_topics([t.name for t in new]), strict=True):
            # A repartition that was interrupted may have created some of them.
            count = len(found["partitions"])
            if count not in (0, topic.partitions):
                raise TopicsError(
                    f"topic {topic.name} has {count} partitions already: repartition to so many, or delete it"
                )
    (old, *_) = topics.of_users(settings, names.VERSION, log.partitions)
    return Plan(old, new, version, log.current, log.topics)


async def repartition(settings: Settings, plan: Plan, wait_s: float, say: Say) -> None:
    """Carry out a plan; ``say`` is called after each step.

    If the services have not applied the whole log within ``wait_s`` seconds, the log is opened again, so that nothing
    has changed, and ``TopicsError`` is raised. Raises ``KafkaError`` and ``TimeoutError``, too.
    """
    consumer = Consumer(client_options(settings))
    async with Admin(settings) as admin, connected(settings) as producer:
        await consumer.start()
        try:
            await _Run(settings, plan, admin, producer, consumer, say).run(wait_s)
        finally:
            await consumer.stop()


class _Run:
    """One run of the command."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        admin: AIOKafkaAdminClient,
        producer: KafkaProducer,
        consumer: Consumer,
        say: Say,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._admin = admin
        self._producer = producer
        self._consumer = consumer
        self._say = say
        self._began = time.monotonic()
        self._attempt = secrets.token_hex(8)
        self._steps = Steps()
        self._ends = Ends()
        self._behind: list[str] = []
        self._partitions = {
            name: [TopicPartition(name, partition) for partition in range(plan.old.partitions)]
            for name in Names.of(names.VERSION).logs
        }

    async def run(self, wait_s: float) -> None:
        """Go from step to step; whatever ends it before the last one undoes all."""
        deadline = self._began + wait_s
        try:
            await self._catch_up(deadline)
            action = self._steps.begin()
            while action is not Action.END:
                action = await self._do(action, deadline)
            _, ids = await topics.create_missing(self._admin, self._settings, self._plan.new)
            self._tell("the topics of the next version are there")
            await self._check_ours()
        except BaseException:
            await self._undo()
            raise
        # From here on there is no way back: the note may be in Kafka though it did not say so.
        await self._end(ids[self._plan.new[0].name])

    async def _do(self, action: Action, deadline: float) -> Action:
        """Do what is next; returns what comes after it."""
        if action is Action.ANNOUNCE:
            await self._note(self._attempt)
            self._tell("gateways are told to write nothing more")
            return Action.LOOK
        if action is Action.LOOK:
            is_applied = await self._look(deadline)
            has_moved = self._ends.take_moved()
            if time.monotonic() > deadline and not (is_applied and not has_moved):
                raise TopicsError(self._why_late())
            after = self._steps.after_look(has_moved, is_applied)
            self._tell(
                "records came" if has_moved else "nothing came, and all is applied" if is_applied else "applying"
            )
            await asyncio.sleep(LOOK_SECONDS)
            return after
        await self._check_ours()
        if action is Action.CLOSE:
            await self._close()
            self._tell(f"{self._plan.old.name} is closed: Kafka refuses messages for it")
        else:
            await topics.configure(self._admin, self._plan.old.name, self._plan.old.config)
            self._tell(f"{self._plan.old.name} takes messages again: some had come while it was closed")
        return Action.LOOK

    def _tell(self, text: str, stage: Stage | None = None) -> None:
        self._say(Status(stage or self._steps.stage, text, round(time.monotonic() - self._began, 1)))

    def _why_late(self) -> str:
        if self._behind:
            return f"not applied in time, are they running? {', '.join(self._behind)}"
        return f"records still come into {', '.join(self._partitions)}: do all gateways have this command's version?"

    # The looks

    async def _catch_up(self, deadline: float) -> None:
        """Wait until all is applied that is there now, so that gateways need not wait for long."""
        ends = Ends()
        for of_topic in self._partitions.values():
            for tp, end in (await self._consumer.ends(of_topic)).items():
                ends.saw(tp, end)
        while not await self._are_applied(ends):
            if time.monotonic() > deadline:
                raise TopicsError(self._why_late())
            await asyncio.sleep(LOOK_SECONDS)
        self._tell("all that was there is applied")

    async def _look(self, deadline: float) -> bool:
        """Look at all ends, and return whether the readers have applied all up to there after a while."""
        for topic, of_topic in self._partitions.items():
            if topic == self._plan.old.name:
                for tp in of_topic:
                    self._ends.wrote(tp, (await self._producer.write(tp.topic, tp.partition, [NOTHING])).offset)
            else:
                # Nothing that is promised is in these: what they lack is announced or acknowledged again.
                for tp, end in (await self._consumer.ends(of_topic)).items():
                    self._ends.saw(tp, end)
        until = min(time.monotonic() + APPLIED_SECONDS, deadline)
        while not (is_applied := await self._are_applied(self._ends)) and time.monotonic() < until:
            await asyncio.sleep(LOOK_SECONDS)
        return is_applied

    async def _are_applied(self, ends: Ends) -> bool:
        self._behind = []
        for reader, of_reader in GROUPS.items():
            for topic in of_reader:
                tps = self._partitions[topic]
                found = await self._admin.list_consumer_group_offsets(reader, partitions=tps)
                if not ends.are_applied(tps, self._offsets(found)):
                    self._behind.append(f"{topic} by {reader}")
        return not self._behind

    def _offsets(self, found: Mapping[Any, OffsetAndMetadata]) -> dict[tuple[str, int], int]:
        """Return the offsets that are of topics of this log, and not of some that were deleted."""
        ids = self._plan.ids
        return {
            tp: committed.offset for tp, committed in found.items() if checkpoint_of(tp, committed).is_of(ids[tp.topic])
        }

    # The steps

    async def _close(self) -> None:
        old = self._plan.old
        await topics.configure(self._admin, old.name, old.config | {"max.message.bytes": str(CLOSED_BYTES)})
        try:
            async with asyncio.timeout(CLOSED_WITHIN):
                # All at once: each refusal costs a connection of those that are under way together.
                await asyncio.gather(*(self._until_closed(tp) for tp in self._partitions[old.name]))
        except TimeoutError as error:
            raise TopicsError(f"topic {old.name} is not closed after {CLOSED_WITHIN:g} s") from error

    async def _until_closed(self, tp: TopicPartition) -> None:
        """Wait until the leader of a partition has the limit: it may take some of ours until then."""
        with contextlib.suppress(MessageSizeTooLargeError):
            while True:
                self._ends.wrote(tp, (await self._producer.write(tp.topic, tp.partition, [TOO_LARGE_IF_CLOSED])).offset)
                await asyncio.sleep(LOOK_SECONDS)

    async def _note(self, attempt: str) -> None:
        await generations.note(self._producer, msgspec.structs.replace(self._plan.current, closing=attempt))

    async def _closing(self) -> str | None:
        """Return the name of the run that closes the log, "" without one; ``None`` once a newer log has begun."""
        last = generations.newest(await generations.generations(self._settings))
        return None if last is None or last.topic_id != self._plan.current.topic_id else last.closing

    async def _check_ours(self) -> None:
        # The last word about the log has to be that this run closes it.
        if await self._closing() != self._attempt:
            raise TopicsError("another repartition was begun meanwhile, which goes on in place of this one")

    async def _undo(self) -> None:
        try:
            async with asyncio.timeout(UNDONE_WITHIN):
                if not await self._is_undoable():
                    return
                await topics.configure(self._admin, self._plan.old.name, self._plan.old.config)
                await self._note("")
        except _STEP_ERRORS as error:
            text = (
                f"{self._plan.old.name} may still be closed ({error!r}): run this again, which ends it or opens the log"
            )
            self._tell(text)
        else:
            self._tell(f"{self._plan.old.name} is open, nothing has changed", Stage.OPEN)

    async def _is_undoable(self) -> bool:
        """Return whether the log is closed by this run, or by one before that was killed."""
        return await self._closing() in (self._attempt, self._plan.current.closing)

    async def _end(self, topic_id: str) -> None:
        new = self._plan.new[0]
        try:
            await generations.note_generation(self._settings, topic_id, new.partitions, self._plan.version)
        except _STEP_ERRORS as error:
            raise TopicsError(
                f"whether the next log has begun is not known ({error!r}): run this again, which says so or goes on"
            ) from error
        self._tell(f"the log is generation {self._plan.generation} with {new.partitions} partitions", Stage.ENDED)
