"""Kafka is away for long, is stopped while a program ends, and while a gateway loses its slot."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from docker.local.part import Running
from docker.local.parts import Service
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack, stop
from tests.faults.kafka_away import ABSENCES, Absence, expire_leases, trial_of
from tests.faults.load import Load
from tests.faults.stacks import LargerStack
from tests.faults.trial import run_trial
from tests.integration.commands import run

STOPPED_S = 40.0
"""Longer than anything of ours or of a library waits for Kafka before it gives up: it has to begin again by itself."""


def long(value: str) -> Any:
    """Return a parameter whose test is left to ``make faults``: 40 s to 70 s each."""
    return pytest.param(value, marks=pytest.mark.long)


async def test_sigterm_while_kafka_is_stopped_ends_a_worker_and_loses_nothing(stack: Stack) -> None:
    kafka, service = stack.running["kafka"], stack.running["messaging"]
    load = Load(stack)
    try:
        await load.more(50)
        kafka.pause()
        try:
            await stop(service)
        finally:
            kafka.resume()
            # Only where it has not ended, which fails the test.
            service.kill()
            await stack.start(service.part)
        await load.more(50)
        await load.stop()
    finally:
        await load.cancel()
    await load.wait_stored()
    await load.drain()
    assert (await run(stack, "audit", "--json")).json["clean"]


async def missing(stack: Stack, gateway: Running) -> list[str]:
    """Return what a gateway lacks to take connections."""
    _, page = await stack.get("/readyz", gateway.part)
    return list(page["missing"])


@pytest.mark.parametrize("kind", [long("pause"), "kill"])
async def test_a_gateway_that_lost_its_slot_while_kafka_was_away_takes_connections_again(
    stack: Stack, kind: str
) -> None:
    alice, bob, carol = user("alice"), user("bob"), user("carol")
    kafka, gateway = stack.running["kafka"], stack.running["gateway"]
    bobs, carols = Received(), Received()
    async with stack.connect(alice) as sender, stack.connect(bob, bobs):
        await sender.send(bob, 0)
        await bobs.wait(1)
        if kind == "pause":
            kafka.pause()
        else:
            kafka.kill()
        try:
            await expire_leases(stack)

            async def has_no_slot() -> bool:
                return "no slot" in await missing(stack, gateway)

            await eventually(has_no_slot)
            await asyncio.sleep(STOPPED_S if kind == "pause" else 0)
        finally:
            kafka.resume()
            if kind == "kill":
                await stack.start(kafka.part)
        await eventually(gateway.part.is_ready, "the gateway is ready")
        # Who was connected all the time is announced again, and who is new is let in.
        await sender.send(bob, 1)
        await bobs.wait(2)
        async with stack.connect(carol, carols):
            await sender.send(carol, 2)
            await carols.wait(1)
    assert bobs.bodies() == [0, 1]
    assert carols.bodies() == [2]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("absence", ABSENCES, ids=str)
async def test_all_works_again_10_s_after_kafka_is_back(tmp_path: Path, absence: Absence) -> None:
    async with LargerStack(tmp_path) as stack:
        services = {name: r.pid for name, r in stack.running.items() if isinstance(r.part, Service)}
        result = await run_trial(stack, trial_of(absence, stack), print)
        assert result.ok, result
        assert {name: stack.running[name].pid for name in services} == services
