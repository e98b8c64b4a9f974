"""The topics: their required configuration, creation and checks, and the rights each service needs on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, for_code

from chat_streams.kafka.client import REQUEST_SECONDS, Admin
from chat_streams.kafka.generations import Log, generations, newest, note_generation, why_closed
from chat_streams.kafka.metadata import TopicMetadata, may_join, topics_of
from chat_streams.kafka.names import (
    DEAD_LETTERS,
    GENERATIONS,
    GROUPS,
    INBOX_REQUESTS,
    INCOMING_MESSAGES,
    LOSSES,
    MAX_RECORD,
    OUTGOING_MESSAGES,
    OUTGOING_SECONDS,
    REGISTRY_CHANGELOG,
    SERVICE_STATS,
    SESSION_EVENTS,
    VERSION,
    Names,
)
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings

DEAD_LETTER_PARTITIONS: Final = 1
STATS_SECONDS: Final = 2 * 3600
CLOSED_BYTES: Final = 100
"""The ``max.message.bytes`` that closes a log: less than the smallest message takes, and more than an empty record."""
COMPACTED: Final = {"cleanup.policy": "compact"}
TIME, LOG_TIME = "message.timestamp.type", "LogAppendTime"
OWN_CONFIG: Final = 1
"""Kafka's number for a configuration that a topic has itself."""
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
        LOSSES: {"write"},
        SERVICE_STATS: {"write"},
    },
    "notification": {
        SESSION_EVENTS: {"read"},
        INBOX_REQUESTS: {"read"},
        OUTGOING_MESSAGES: {"write"},
        DEAD_LETTERS: {"write"},
        LOSSES: {"write"},
        SERVICE_STATS: {"write"},
    },
    "history": {
        INCOMING_MESSAGES: {"read"},
        DEAD_LETTERS: {"write"},
        LOSSES: {"write"},
        SERVICE_STATS: {"write"},
    },
    "inspector": {
        INCOMING_MESSAGES: {"read"},
        SESSION_EVENTS: {"read"},
        INBOX_REQUESTS: {"read"},
        OUTGOING_MESSAGES: {"read"},
        DEAD_LETTERS: {"read"},
        LOSSES: {"read"},
        SERVICE_STATS: {"read", "write"},
    },
}
"""The operations of each service on each topic. All services also read ``log_generations`` and describe all configs."""


@dataclass(frozen=True)
class Topic:
    """A topic with its required number of partitions and configuration."""

    name: str
    partitions: int
    config: dict[str, str]


def of_users(settings: Settings, version: int, partitions: int) -> list[Topic]:
    """Return the topics that are partitioned by user, ``incoming_messages`` first.

    Args:
        settings: Settings of the process.
        version: Version of the names (``Names.of``).
        partitions: Number of partitions of each topic.
    """
    names, kept = Names.of(version), _kept(settings)
    return [
        Topic(names.incoming_messages, partitions, kept),
        Topic(names.session_events, partitions, kept),
        Topic(names.inbox_requests, partitions, kept),
        Topic(names.registry_changelog, partitions, _common(settings) | COMPACTED),
    ]


def _common(settings: Settings) -> dict[str, str]:
    return {
        "min.insync.replicas": str(settings.min_insync),
        "unclean.leader.election.enable": "false",
        # Of all topics. What goes by the time of a record goes by one clock, the broker's: that of messages, retry
        # windows, ages of requests, devices and inboxes, and whether a service lives. And with the time of its writer,
        # a broker refuses a record that is an hour ahead of it (message.timestamp.after.max.ms), for as long as that
        # writer's clock is wrong: also one of a changelog or of log_generations.
        TIME: LOG_TIME,
    }


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
        Topic(LOSSES, 1, common | COMPACTED),
        # Small segments, because retention only deletes whole ones.
        Topic(
            SERVICE_STATS,
            1,
            common | {"retention.ms": str(STATS_SECONDS * 1000), "segment.bytes": str(16 * 1024 * 1024)},
        ),
    ]


class Done(NamedTuple):
    """The names of the topics that were created, and of those that were given the log's time."""

    created: list[str]
    configured: list[str]


async def create(settings: Settings) -> Done:
    """Create the missing topics, have all of them carry the log's time, and record the log's generation.

    Raises ``TopicsError`` when an existing topic is not as required.
    """
    async with Admin(settings) as admin:
        existing, _ = await topics_of(admin, [GENERATIONS, INCOMING_MESSAGES])
        if GENERATIONS in existing and INCOMING_MESSAGES not in existing:
            last = newest(await generations(settings))
            if last is not None and last.version != VERSION:
                raise TopicsError(
                    f"CHAT_TOPICS_VERSION is {VERSION}, the log is version {last.version}: the next version is made"
                    " by 'faust -A chat_streams topics repartition' only"
                )
        created, ids = await create_missing(admin, settings, _wanted(settings))
        configured = await _set_log_time(admin, [topic.name for topic in _wanted(settings)])
    await note_generation(settings, ids[INCOMING_MESSAGES], settings.partitions, VERSION)
    await check(settings)
    return Done(created, configured)


async def _set_log_time(admin: AIOKafkaAdminClient, names: Sequence[str]) -> list[str]:
    """Have topics carry the time at which records are appended; returns the names of those that did not."""
    wrong = {name: found for name, found in (await _configs(admin, names)).items() if found.get(TIME) != LOG_TIME}
    for name in wrong:
        await configure(admin, name, await _own_config(admin, name) | {TIME: LOG_TIME})
    deadline = time.monotonic() + REQUEST_SECONDS
    while wrong and any(found.get(TIME) != LOG_TIME for found in (await _configs(admin, list(wrong))).values()):
        if time.monotonic() > deadline:
            raise TopicsError(f"{TIME} is not {LOG_TIME} after {REQUEST_SECONDS:g} s: topic {', '.join(wrong)}")
        await asyncio.sleep(0.05)
    return list(wrong)


async def configure(admin: AIOKafkaAdminClient, name: str, config: Mapping[str, str]) -> None:
    """Replace all of a topic's own configuration: what is left out goes back to its default; raises ``TopicsError``."""
    for answer in await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, dict(config))]):
        for code, text, *_ in answer.resources:
            if code:
                raise TopicsError(f"topic {name} is not configured: {for_code(code).__name__}: {text}")


async def _own_config(admin: AIOKafkaAdminClient, name: str) -> dict[str, str]:
    answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    entries = [(entry, answer.API_VERSION) for answer in answers for res in answer.resources for entry in res[4]]
    # Before version 1, Kafka says whether a value is a default, not where it comes from.
    return {e[0]: e[1] for e, version in entries if (e[3] == OWN_CONFIG if version else not e[3])}


async def create_missing(
    admin: AIOKafkaAdminClient, settings: Settings, wanted: Sequence[Topic]
) -> tuple[list[str], dict[str, str]]:
    """Create the topics that do not exist yet; returns their names, and the ids of all ``wanted`` topics by name.

    Raises ``TopicsError``, and ``KafkaError``.

    Args:
        admin: A started admin client.
        settings: Settings of the process; they give the replication factor.
        wanted: The topics that must exist; existing ones are not compared (see ``check``).
    """
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
    # A broker learns of a topic that the controller created a moment later.
    deadline = time.monotonic() + REQUEST_SECONDS
    while len(found := (await topics_of(admin, names))[0]) < len(names):
        if time.monotonic() > deadline:
            raise TopicsError(f"not there after {REQUEST_SECONDS:g} s: topic {', '.join(set(names) - found.keys())}")
        await asyncio.sleep(0.05)
    return found


async def check(settings: Settings, service: str = "") -> Log:
    """Check that all topics are as required, and return the log; raises ``TopicsError`` with everything that is wrong.

    With ``service``, also check that the Kafka user has the rights that ``NEEDS`` lists for that service.
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
        known = await generations(settings) if GENERATIONS in described else []
        is_closing = any(g.closing for g in known)
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
                if name in ("min.insync.replicas", "unclean.leader.election.enable", "cleanup.policy", TIME):
                    actual = configs[topic.name].get(name)
                    if actual != value:
                        remedy = ": set it with 'faust -A chat_streams topics create'" if name == TIME else ""
                        wrong.append(f"topic {topic.name} has {name}={actual}, {value} is wanted{remedy}")
            if text := _too_small(topic, configs[topic.name], is_closing):
                wrong.append(text)
        if wrong:
            raise TopicsError("; ".join(wrong))
    current = next((g for g in known if g.topic_id == described[INCOMING_MESSAGES].id), None)
    if current is None:
        raise TopicsError(
            f"topic {INCOMING_MESSAGES} was made anew and has no generation yet, so its messages would be taken for old"
            " ones: run 'faust -A chat_streams topics create'"
        )
    if newest(known) != current:
        raise TopicsError(
            f"topic {INCOMING_MESSAGES} is of generation {current.generation}, {why_closed(known, current.topic_id)}"
        )
    return Log(current, {name: topic.id for name, topic in described.items()})


async def largest_records(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, int]:
    """Return the size of the largest record that each topic takes: its own limit, or the brokers'.

    Raises ``KafkaError``.
    """
    configs = await _configs(admin, names)
    return {name: int(config["max.message.bytes"]) for name, config in configs.items() if "max.message.bytes" in config}


def _too_small(topic: Topic, config: dict[str, str], is_closing: bool) -> str:
    """Return what is wrong with the limit of a topic for records; "" if nothing is."""
    wanted, actual = int(topic.config.get("max.message.bytes", 0)), int(config.get("max.message.bytes", 0))
    if actual >= wanted or (is_closing and topic.name == INCOMING_MESSAGES and actual == CLOSED_BYTES):
        return ""
    return (
        f"topic {topic.name} takes records of {actual} bytes only, {wanted} are wanted: set its max.message.bytes"
        " (without it, message.max.bytes of the brokers counts)"
    )


async def retentions(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, float]:
    """Return for how many seconds Kafka keeps the records of each topic; topics that keep them for ever are left out.

    Raises ``KafkaError``.
    """
    configs = await _configs(admin, names)
    found = {name: int(config.get("retention.ms", -1)) / 1000 for name, config in configs.items()}
    return {name: seconds for name, seconds in found.items() if seconds > 0}


async def _may_join(admin: AIOKafkaAdminClient, group: str) -> bool:
    # On a new Kafka, no group has a coordinator until the topic of the committed offsets exists.
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
