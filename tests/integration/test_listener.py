"""A gateway on ::1 whose engines are at ::1, too, and that has few file descriptors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import NamedTuple

import aiohttp
import pytest_asyncio

from chat_streams.model.addresses import join_address
from docker.local.layout import ROOT, Layout
from docker.local.part import PROBE_SECONDS
from docker.local.parts import Service
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tests.faults.proxy import Proxy

HOST = "::1"
DESCRIPTORS = 160


class _Service(Service):
    @property
    def base(self) -> str:
        return f"http://{join_address(HOST, self.port)}"

    async def is_ready(self) -> bool:
        try:
            return await status(f"{self.base}/readyz") == 200
        except (aiohttp.ClientError, TimeoutError):
            return False


async def status(url: str) -> int:
    timeout = aiohttp.ClientTimeout(total=PROBE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as response:
        return response.status


class Gateway(NamedTuple):
    part: _Service
    url: str


@pytest_asyncio.fixture(scope="module")
async def gateway(stack: Stack) -> AsyncIterator[Gateway]:
    """Start a gateway that knows no address of IPv4, but those that Kafka and Redis tell it."""
    spare = Layout.free(ROOT / "unused")
    kafka, redis = Proxy(spare.kafka, stack.layout.kafka, HOST), Proxy(spare.redis, stack.layout.redis, HOST)
    await asyncio.gather(kafka.restore(), redis.restore())
    number = stack.service("gateway")
    part = _Service(stack.layout, "gateway", int(number.name.partition("-")[2]))
    part.code = stack.code
    part.environment |= {
        "CHAT_GATEWAY_HOST": f"[{HOST}]",
        "CHAT_METRICS_HOST": HOST,
        "CHAT_KAFKA": join_address(HOST, kafka.port),
        "CHAT_REDIS": f"redis://{join_address(HOST, redis.port)}",
    }
    part.command = ["prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}", *part.command]
    running = await stack.start(part)
    yield Gateway(part, f"ws://{join_address(HOST, part.port)}/v1/connect")
    stack.forget(running)
    kafka.cut()
    redis.cut()


async def test_messages_pass_a_gateway_on_ipv6(stack: Stack, gateway: Gateway) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    async with (
        stack.connect(bob, received, url=gateway.url),
        stack.connect(alice, url=gateway.url) as sender,
    ):
        await sender.send(bob, "by IPv6")
        await received.wait(1)
    assert received.bodies(alice) == ["by IPv6"]
    metrics = gateway.part.ports["gateway_metrics"]
    assert await status(f"http://{join_address(HOST, metrics)}/metrics") == 200


async def test_without_file_descriptors_connections_are_refused_with_503_and_a_line_in_the_log(
    stack: Stack, gateway: Gateway
) -> None:
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    async with stack.connect(user(), url=gateway.url) as there:
        # Without a request: a plain HTTP answer would end the connection.
        while len(held) < DESCRIPTORS and await status(f"{gateway.part.base}/healthz") != 503:
            held.append(await asyncio.open_connection(HOST, gateway.part.port))
        assert 10 < len(held) < DESCRIPTORS * 3 / 4
        # Who is there is not concerned, nor is the answer to others of them.
        await there.send(user(), "still there")
        assert await status(f"{gateway.part.base}/v1/connect") == 503
    for _, writer in held:
        writer.close()
    await eventually(gateway.part.is_ready)
    lines = [json.loads(line) for line in gateway.part.log.read_text().splitlines() if line.startswith("{")]
    events = [line["event"] for line in lines]
    assert len([event for event in events if "for want of file descriptors" in event]) == 1
    assert "CHAT_MAX_CONNECTIONS is more than file descriptors allow" in events
