"""Delivery over TLS, by users with the least rights; and the errors for a wrong login, certificate or right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from chat_streams.kafka import topics
from chat_streams.model.errors import RedisRefused, TopicsError
from docker.local.parts import Service
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tables.redis_cluster import Cluster
from tests.integration.commands import run
from tests.integration.secured import ADMIN, STRANGER, Certificates, SecuredStack
from tests.integration.test_start import GATEWAY, MESSAGING, fails

WRONG = "not-the-password"


@pytest_asyncio.fixture(scope="module")
async def secured(tmp_path_factory: pytest.TempPathFactory, stack: Stack) -> AsyncIterator[SecuredStack]:
    database = str(stack.settings.dynamodb_endpoint)
    async with SecuredStack(tmp_path_factory.mktemp("secured"), database) as secured:
        yield secured
        secured.check()


async def test_messages_are_delivered_with_the_least_rights(secured: SecuredStack) -> None:
    alice, bobs = user("alice"), [user("bob") for _ in range(4)]
    for bob in bobs:
        await secured.send(alice, bob, range(5))
    for bob in bobs:
        received = Received()
        async with secured.connect(bob, received) as client:
            await received.wait(5)

            async def is_kept() -> bool:
                return len((await client.history(alice)).messages) == 5

            await eventually(is_kept)
        assert received.bodies() == list(range(5))
    operator: dict[str, Any] = {"redis_user": "chat-operators", "redis_password": secured.passwords["chat-operators"]}
    await run(secured, "audit", "--user", bobs[0], **operator)


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"kafka_password": WRONG}, ["refused user admin"]),
        ({"kafka_user": "nobody"}, ["refused user nobody"]),
        ({"kafka_ca_file": "another"}, ["certificate of 127.0.0.1", "CHAT_KAFKA_CA_FILE"]),
        ({"kafka": "localhost"}, ["certificate of localhost", "Hostname mismatch"]),
        ({"kafka_user": None, "kafka_password": None}, ["CHAT_KAFKA_USER"]),
        ({"kafka_tls": False, "kafka_ca_file": None}, ["CHAT_KAFKA_TLS"]),
    ],
    ids=["password", "user", "authority", "name", "nobody", "plaintext"],
)
async def test_a_refusal_by_kafka_names_the_user_or_setting(
    secured: SecuredStack, tmp_path: Path, changes: dict[str, Any], texts: list[str]
) -> None:
    if changes.get("kafka_ca_file"):
        changes = {"kafka_ca_file": Certificates(tmp_path).authority}
    if "kafka" in changes:
        changes = {"kafka": f"localhost:{secured.layout.kafka}"}
    with pytest.raises(TopicsError) as caught:
        await topics.check(secured.settings_of(ADMIN, ADMIN, **changes))
    for text in [*texts, str(secured.layout.kafka)]:
        assert text in str(caught.value)
    assert WRONG not in str(caught.value)


async def test_a_service_checks_its_rights_before_it_starts(secured: SecuredStack) -> None:
    with pytest.raises(TopicsError, match="user history may not read topic inbox_requests"):
        await topics.check(secured.settings_of("history", ADMIN), "notification")
    # Its consumer would wait for ever, in silence.
    with pytest.raises(TopicsError, match=f"user {STRANGER} may not read as group history"):
        await topics.check(secured.settings_of(STRANGER, ADMIN), "history")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"redis_password": WRONG}, "refused user admin"),
        ({"redis_user": None, "redis_password": None}, "refused user default"),
        ({"redis_ca_file": "another"}, "CHAT_REDIS_CA_FILE"),
        ({"redis_user": STRANGER}, r"no permissions to run the 'cluster\|slots'"),
    ],
    ids=["password", "nobody", "authority", "rights"],
)
async def test_a_refusal_by_redis_names_the_user_or_setting(
    secured: SecuredStack, tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    if "redis_ca_file" in changes:
        changes = {"redis_ca_file": Certificates(tmp_path).authority}
    if changes.get("redis_user"):
        changes |= {"redis_password": secured.passwords[STRANGER]}
    cluster = Cluster(secured.settings_of(ADMIN, ADMIN, **changes))
    try:
        with pytest.raises(RedisRefused, match=text) as caught:
            await cluster.check()
    finally:
        await cluster.close()
    assert "CHAT_REDIS" in str(caught.value)
    assert WRONG not in str(caught.value)


async def test_a_program_that_is_refused_ends_with_one_line(secured: SecuredStack) -> None:
    await asyncio.gather(
        fails(secured, GATEWAY, "Kafka", "refused user admin", kafka_password=WRONG, gateway_port=1),
        fails(secured, MESSAGING, "Redis", "refused user admin", redis_password=WRONG),
    )


async def test_no_log_of_a_service_has_a_password(secured: SecuredStack) -> None:
    logs = [running.part.log for running in secured.running.values() if isinstance(running.part, Service)]
    assert len(logs) >= 4
    for log in logs:
        text = log.read_text()
        assert text
        assert not [name for name, password in secured.passwords.items() if password in text], log
