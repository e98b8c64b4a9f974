"""The topics: what they are called, how they are made, which partition a user is on, and which log this is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import aiokafka
import msgspec
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code
from aiokafka.partitioner import murmur2
from aiokafka.structs import TopicPartition

from chat_streams import broker
from chat_streams.metadata import TopicMetadata, may_join, topics_of
from chat_streams.runtime.settings import Settings


class Names(NamedTuple):
    """What the topics on whose partitions the users are, and the table of connections, are called in one version."""

    incoming_messages: str
    session_events: str
    inbox_requests: str
    registry: str

    @classmethod
    def of(cls, version: int) -> Names:
        """Those of a version, from 1 on."""
        ending = "" if version == 1 else f"-{version}"
        names = ("incoming_messages", "session_events", "inbox_requests", "sessions")
        return cls(*(f"{name}{ending}" for name in names))

    @property
    def logs(self) -> tuple[str, str, str]:
        """The topics from which inboxes are restored."""
        return self.incoming_messages, self.session_events, self.inbox_requests

    @property
    def registry_changelog(self) -> str:
        """Faust's topic for the table."""
        return f"messaging-{self.registry}-changelog"


_VERSION_TEXT: Final = os.environ.get("CHAT_TOPICS_VERSION", "1")
# Faust's agents name their topics when they are imported. Whatever is no number is refused by the settings.
VERSION: Final = int(_VERSION_TEXT) if _VERSION_TEXT.isdecimal() else 1
_NAMES: Final = Names.of(VERSION)
INCOMING_MESSAGES: Final = _NAMES.incoming_messages
SESSION_EVENTS: Final = _NAMES.session_events
INBOX_REQUESTS: Final = _NAMES.inbox_requests
REGISTRY: Final = _NAMES.registry
REGISTRY_CHANGELOG: Final = _NAMES.registry_changelog
OUTGOING_MESSAGES: Final = "outgoing_messages"
DEAD_LETTERS: Final = "dead_letters"
GENERATIONS: Final = "log_generations"
SERVICE_STATS: Final = "service_stats"

MAX_RECORD: Final = 2 * 1024 * 1024
REQUEST_SECONDS: Final = 10.0
DEAD_LETTER_PARTITIONS: Final = 1
OUTGOING_SECONDS: Final = 3600
STATS_SECONDS: Final = 2 * 3600
COMPACTED: Final = {"cleanup.policy": "compact"}
NEEDS: Final = {
    "gateway": {
        INCOMING_MESSAGES: {"write"},
        SESSION_EVENTS: {"write"},
        INBOX_REQUESTS: {"write"},
        OUTGOING_MESSAGES: {"read"},
        SERVICE_STATS: {"write"},
    },
    "messaging": {
        INCOMING_MESSAGES: {"read"},
        SESSION_EVENTS: {"read"},
        INBOX_REQUESTS: {"read"},
        OUTGOING_MESSAGES: {"write"},
        REGISTRY_CHANGELOG: {"read", "write"},
        DEAD_LETTERS: {"write"},
        SERVICE_STATS: {"write"},
    },
    "notification": {
        SESSION_EVENTS: {"read"},
        INBOX_REQUESTS: {"read"},
        OUTGOING_MESSAGES: {"write"},
        DEAD_LETTERS: {"write"},
        SERVICE_STATS: {"write"},
    },
    "history": {INCOMING_MESSAGES: {"read"}, DEAD_LETTERS: {"write"}, SERVICE_STATS: {"write"}},
    "inspector": {
        INCOMING_MESSAGES: {"read"},
        SESSION_EVENTS: {"read"},
        INBOX_REQUESTS: {"read"},
        OUTGOING_MESSAGES: {"read"},
        DEAD_LETTERS: {"read"},
        SERVICE_STATS: {"read", "write"},
    },
}
"""What each service does with which topic. All of them read ``log_generations``, and the configs of every topic."""
GROUPS: Final = ("messaging", "notification", "history")
"""The services that are consumer groups, too."""


class TopicsError(Exception):
    """The topics are not as they must be; the text says what is wrong and what to do."""


class Log(NamedTuple):
    """The log the messages are addressed in."""

    generation: int
    partitions: int


class Generation(msgspec.Struct, frozen=True):
    """A record of ``log_generations``: which generation the topic with this id is, and which version of its name."""

    generation: int
    topic_id: str
    partitions: int
    version: int = 1


@lru_cache(maxsize=65_536)
def partition_of(user: str, partitions: int) -> int:
    """The partition of a user: Kafka's own default partitioner on the bytes of the user id."""
    return int((murmur2(user.encode()) & 0x7FFFFFFF) % partitions)


@dataclass(frozen=True)
class Topic:
    """A topic as it must be."""

    name: str
    partitions: int
    config: dict[str, str]


def of_users(settings: Settings, version: int, partitions: int) -> list[Topic]:
    """The topics on whose partitions the users are; ``incoming_messages`` first."""
    names, kept = Names.of(version), _kept(settings)
    return [
        Topic(names.incoming_messages, partitions, kept),
        Topic(names.session_events, partitions, kept),
        Topic(names.inbox_requests, partitions, kept),
        Topic(names.registry_changelog, partitions, _common(settings) | COMPACTED),
    ]


def _common(settings: Settings) -> dict[str, str]:
    return {"min.insync.replicas": str(settings.min_insync), "unclean.leader.election.enable": "false"}


def _kept(settings: Settings) -> dict[str, str]:
    return _common(settings) | {"retention.ms": str(settings.retention * 1000), "max.message.bytes": str(MAX_RECORD)}


def _wanted(settings: Settings) -> list[Topic]:
    common, kept = _common(settings), _kept(settings)
    brief = kept | {"retention.ms": str(OUTGOING_SECONDS * 1000), "segment.bytes": str(256 * 1024 * 1024)}
    return [
        *of_users(settings, VERSION, settings.partitions),
        Topic(OUTGOING_MESSAGES, settings.slots, brief),
        Topic(DEAD_LETTERS, DEAD_LETTER_PARTITIONS, kept | {"max.message.bytes": str(2 * MAX_RECORD)}),
        Topic(GENERATIONS, 1, common | COMPACTED),
        # Small segments: only a whole one is removed.
        Topic(
            SERVICE_STATS,
            1,
            common | {"retention.ms": str(STATS_SECONDS * 1000), "segment.bytes": str(16 * 1024 * 1024)},
        ),
    ]


class Admin:
    """An admin client that says clearly when there is no Kafka."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = AIOKafkaAdminClient(
            **broker.client_options(settings), request_timeout_ms=int(REQUEST_SECONDS * 1000)
        )

    async def __aenter__(self) -> AIOKafkaAdminClient:
        try:
            await self._client.start()
        except KafkaError as error:
            await self._client.close()
            raise TopicsError(await broker.trouble(self._settings, error)) from error
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


async def create(settings: Settings) -> list[str]:
    """Create the topics that are missing and note the log's generation; returns the names of those it made.

    Raises ``TopicsError`` when an existing one is not as it must be.
    """
    async with Admin(settings) as admin:
        there, _ = await topics_of(admin, [GENERATIONS, INCOMING_MESSAGES])
        if GENERATIONS in there and INCOMING_MESSAGES not in there:
            newest = max(await generations(settings), key=lambda g: g.generation, default=None)
            if newest is not None and newest.version != VERSION:
                raise TopicsError(
                    f"CHAT_TOPICS_VERSION is {VERSION}, the log is version {newest.version}: the next version is made"
                    " by 'faust -A chat_streams topics repartition' only"
                )
        made, ids = await create_missing(admin, settings, _wanted(settings))
    await note_generation(settings, ids[INCOMING_MESSAGES], settings.partitions, VERSION)
    await check(settings)
    return made


async def create_missing(
    admin: AIOKafkaAdminClient, settings: Settings, wanted: Sequence[Topic]
) -> tuple[list[str], dict[str, str]]:
    """Create those topics that are missing; returns the names of these, and the ids of all. Raises ``TopicsError``."""
    existing, _ = await topics_of(admin, [t.name for t in wanted])
    missing = [t for t in wanted if t.name not in existing]
    if missing:
        answer = await admin.create_topics(
            [NewTopic(t.name, t.partitions, settings.replication, topic_configs=t.config) for t in missing]
        )
        for name, code, *text in answer.topic_errors:
            if code not in (0, TopicAlreadyExistsError.errno):
                raise TopicsError(
                    f"topic {name} was not created: {for_code(code).__name__}: {' '.join(map(str, text))}"
                )
    found = await _find_all(admin, [t.name for t in wanted])
    return [t.name for t in missing], {name: topic.id for name, topic in found.items()}


async def _find_all(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, TopicMetadata]:
    # What the controller has made, the broker itself knows a moment later.
    deadline = time.monotonic() + REQUEST_SECONDS
    while len(found := (await topics_of(admin, names))[0]) < len(names):
        if time.monotonic() > deadline:
            raise TopicsError(f"not there after {REQUEST_SECONDS:g} s: topic {', '.join(set(names) - found.keys())}")
        await asyncio.sleep(0.05)
    return found


async def check(settings: Settings, service: str = "") -> Log:
    """The log, once all topics are found to be as they must be; raises ``TopicsError`` naming all that is wrong.

    With a service, also whether the Kafka user may do what ``NEEDS`` says of it.
    """
    async with Admin(settings) as admin:
        described, hidden = await topics_of(admin, [t.name for t in _wanted(settings)])
        missing = _missing_rights(described, hidden, service)
        if settings.kafka_user and service in GROUPS and not await _may_join(admin, service):
            missing.append(f"may not read as group {service}")
        if missing:
            raise TopicsError(
                f"Kafka user {settings.kafka_user or 'ANONYMOUS'} {', '.join(missing)}: give it the rights that"
                f" docs/security.md lists{' for ' * bool(service)}{service}"
            )
        configs = await _configs(admin, [t.name for t in _wanted(settings) if t.name in described])
        wrong = []
        for topic in _wanted(settings):
            if topic.name not in described:
                wrong.append(f"topic {topic.name} is missing: create it with 'faust -A chat_streams topics create'")
                continue
            found = described[topic.name].partitions
            if found != topic.partitions:
                setting = "CHAT_SLOTS" if topic.name == OUTGOING_MESSAGES else "CHAT_PARTITIONS"
                wrong.append(
                    f"topic {topic.name} has {found} partitions, {topic.partitions} are wanted ({setting}):"
                    " a topic is never grown in place; correct the setting"
                )
            replicas = described[topic.name].replicas
            if replicas < settings.replication:
                wrong.append(f"topic {topic.name} has {replicas} replicas, {settings.replication} are wanted")
            for name, value in topic.config.items():
                if name in ("min.insync.replicas", "unclean.leader.election.enable", "cleanup.policy"):
                    actual = configs[topic.name].get(name)
                    if actual != value:
                        wrong.append(f"topic {topic.name} has {name}={actual}, {value} is wanted")
        if wrong:
            raise TopicsError("; ".join(wrong))
    known = await generations(settings)
    mine = next((g for g in known if g.topic_id == described[INCOMING_MESSAGES].id), None)
    if mine is None:
        raise TopicsError(
            f"topic {INCOMING_MESSAGES} was made anew and has no generation yet, so its messages would be taken for old"
            " ones: run 'faust -A chat_streams topics create'"
        )
    newest = max(known, key=lambda g: g.generation)
    if mine.generation != newest.generation:
        raise TopicsError(
            f"topic {INCOMING_MESSAGES} is of generation {mine.generation}, the log is of generation"
            f" {newest.generation} by now: set CHAT_TOPICS_VERSION={newest.version} and"
            f" CHAT_PARTITIONS={newest.partitions}"
        )
    return Log(mine.generation, settings.partitions)


async def _may_join(admin: AIOKafkaAdminClient, group: str) -> bool:
    # The first group of a new Kafka waits until the topic of the groups' offsets is made.
    deadline = time.monotonic() + REQUEST_SECONDS
    while (allowed := await may_join(admin, group)) is None and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    return allowed is not False


def _missing_rights(described: dict[str, TopicMetadata], hidden: set[str], service: str) -> list[str]:
    needs = {name: {"describe configs of"} for name in described}
    for name, operations in ({GENERATIONS: {"read"}} | NEEDS.get(service, {})).items():
        needs.setdefault(name, set()).update(operations)
    missing = [f"may not see topic {name}" for name in sorted(hidden)]
    missing += [
        f"may not {operation} topic {name}"
        for name, operations in sorted(needs.items())
        for operation in sorted(operations)
        if name in described and not described[name].allows(operation)
    ]
    return missing


async def _configs(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names])
    return {
        resource[3]: {entry[0]: entry[1] for entry in resource[4]}
        for answer in answers
        for resource in answer.resources
    }


async def generations(settings: Settings) -> list[Generation]:
    """All generations of the log there were; raises ``TopicsError``."""
    consumer = aiokafka.AIOKafkaConsumer(**broker.client_options(settings), enable_auto_commit=False)
    tp = TopicPartition(GENERATIONS, 0)
    found: list[Generation] = []
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            await consumer.start()
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            end = (await consumer.end_offsets([tp]))[tp]
            while await consumer.position(tp) < end:
                batch = await consumer.getmany(tp, timeout_ms=500)
                found += [msgspec.json.decode(r.value, type=Generation) for r in batch.get(tp, [])]
    except (KafkaError, TimeoutError) as error:
        raise TopicsError(f"topic {GENERATIONS} cannot be read from {settings.kafka}: {error!r}") from error
    finally:
        await consumer.stop()
    return found


async def former(settings: Settings) -> list[Generation]:
    """The generations of earlier versions whose topics Kafka still has, the oldest first.

    Raises ``TopicsError``, also where we may not see them, and ``KafkaError``.
    """
    if VERSION == 1:
        return []
    known = [g for g in await generations(settings) if g.version < VERSION]
    names = {g: Names.of(g.version) for g in known}
    async with Admin(settings) as admin:
        there, hidden = await topics_of(admin, sorted({name for of in names.values() for name in of.logs}))
    if hidden:
        raise TopicsError(f"may not see topic {', '.join(sorted(hidden))}, which may hold what waits in inboxes")
    return sorted(
        (
            g
            for g, of in names.items()
            if all(name in there for name in of.logs) and there[of.incoming_messages].id == g.topic_id
        ),
        key=lambda g: g.generation,
    )


async def note_generation(settings: Settings, topic_id: str, partitions: int, version: int) -> int:
    """Make the log with this id the next generation, unless it is one; returns which. Raises ``TopicsError``."""
    known = await generations(settings)
    if (mine := next((g for g in known if g.topic_id == topic_id), None)) is not None:
        return mine.generation
    generation = Generation(max((g.generation for g in known), default=0) + 1, topic_id, partitions, version)
    producer = aiokafka.AIOKafkaProducer(**broker.client_options(settings), acks="all", enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait(GENERATIONS, msgspec.json.encode(generation), key=topic_id.encode())
    finally:
        await producer.stop()
    return generation.generation
