"""A stop of the services: it ends within its grace whatever state an engine is in, and leaves nothing open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest

from chat_streams.runtime.process import GRACE_SECONDS
from docker.local.part import Running
from docker.local.parts import Service
from docker.local.probes import Received, user
from docker.local.temporary_stack import Stack
from tests.faults.load import Load
from tests.integration.commands import run

LEFT_OPEN = ("ResourceWarning", "never awaited", "nobody waits for", "never retrieved", "was destroyed", "Unclosed")
"""Words of Python, aiohttp and our log for what was not closed, or not awaited, when a process ends."""


def services_of(stack: Stack) -> list[Running]:
    return [running for running in stack.running.values() if isinstance(running.part, Service)]


async def stop_all(services: Sequence[Running]) -> dict[str, float]:
    """Stop services at the same time; returns how long each took."""

    async def stop(service: Running) -> float:
        begin = time.monotonic()
        await asyncio.to_thread(service.stop)
        return time.monotonic() - begin

    took = await asyncio.gather(*(stop(service) for service in services))
    return {service.part.name: seconds for service, seconds in zip(services, took, strict=True)}


async def start_all(stack: Stack, services: Sequence[Running]) -> None:
    await asyncio.gather(*(stack.start(service.part) for service in services))


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("engine", "how"),
    # The database is in memory here: killed, it would lose what was stored.
    [("kafka", "pause"), ("kafka", "kill"), ("redis", "pause"), ("redis", "kill"), ("dynamodb", "pause")],
)
async def test_each_service_stops_within_its_grace_and_loses_nothing(stack: Stack, engine: str, how: str) -> None:
    away, services = stack.running[engine], services_of(stack)
    load = Load(stack)
    try:
        await load.more(50)
        if how == "pause":
            away.pause()
        else:
            away.kill()
        try:
            took = await stop_all(services)
        finally:
            away.resume()
            if how == "kill":
                await stack.start(away.part)
            for service in services:
                service.kill()
            await start_all(stack, services)
        assert max(took.values()) < GRACE_SECONDS, took
        assert {service.part.name: service.process.returncode for service in services} == dict.fromkeys(took, 0)
        await load.more(50)
        await load.stop()
    finally:
        await load.cancel()
    await load.wait_stored()
    await load.drain()
    assert (await run(stack, "audit", "--json")).json["clean"]


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_nothing_is_left_open_when_a_service_stops(stack: Stack) -> None:
    services = services_of(stack)
    await stop_all(services)
    debugging = {"PYTHONDEVMODE": "1", "PYTHONWARNINGS": "default"}
    for service in services:
        service.part.environment |= debugging
    before = {service.part.name: service.part.log.stat().st_size for service in services}
    try:
        await start_all(stack, services)
        debugged = services_of(stack)
        alice, bob = user("alice"), user("bob")
        received = Received()
        async with stack.connect(alice) as sender, stack.connect(bob, received):
            await sender.send(bob, 0)
            await received.wait(1)
            await sender.history(bob)
            # Both are connected while the gateway stops.
            await stop_all(debugged)
    finally:
        for service in services:
            for name in debugging:
                del service.part.environment[name]
        await start_all(stack, services)
    found = {
        service.part.name: lines for service in services if (lines := left_open(service, before[service.part.name]))
    }
    assert found == {}


def left_open(service: Running, begin: int) -> list[str]:
    """Return the lines of a service's log that tell of something left open, from an offset on."""
    text = service.part.log.read_bytes()[begin:].decode()
    return [line for line in text.splitlines() if any(words in line for words in LEFT_OPEN)]
