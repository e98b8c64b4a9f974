"""The topics carry the log's time, those of before too."""

from __future__ import annotations

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from chat_streams.kafka import topics
from chat_streams.kafka.client import Admin
from chat_streams.kafka.names import DEAD_LETTERS
from docker.local.temporary_stack import Stack
from tests.integration.commands import run


async def test_a_topic_of_before_is_given_the_time_of_the_log_and_keeps_its_configuration(stack: Stack) -> None:
    before = await config_of(stack)
    assert before[topics.TIME] == topics.LOG_TIME
    own = {name: before[name] for name in ("retention.ms", "max.message.bytes", "min.insync.replicas")}
    own["unclean.leader.election.enable"] = "false"
    async with Admin(stack.settings) as admin:
        await topics.configure(admin, DEAD_LETTERS, own | {topics.TIME: "CreateTime", "segment.ms": "123456789"})
    refused = await run(stack, "topics", "check", code=1)
    assert f"topic {DEAD_LETTERS} has {topics.TIME}=CreateTime, {topics.LOG_TIME} is wanted" in refused.err
    assert "topics create" in refused.err
    done = await run(stack, "topics", "create")
    assert f"have the log's time now ({topics.TIME}={topics.LOG_TIME}): {DEAD_LETTERS}\n" in done.out
    assert await config_of(stack) == before | {"segment.ms": "123456789"}
    assert "log's time" not in (await run(stack, "topics", "create")).out


async def config_of(stack: Stack) -> dict[str, str]:
    async with Admin(stack.settings) as admin:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, DEAD_LETTERS)])
    return {entry[0]: entry[1] for answer in answers for resource in answer.resources for entry in resource[4]}
