"""Clients that mean no good, or are broken: the gateway stays within its bounds, and the others don't notice."""

from __future__ import annotations

import asyncio
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.measure import resident_of
from chat_streams.kafka.names import partition_of
from docker.local.hostile import Bystander, bad, connections, flood, is_held, objects, one_byte_a_second, store
from docker.local.probes import WITHIN_S, Received, eventually, user
from docker.local.temporary_stack import Stack

MIB = 1024 * 1024


async def test_a_client_that_never_reads_fills_its_window_and_no_more(stack: Stack) -> None:
    bob, carol = user("bob"), user("carol")
    pid = stack.running["gateway"].pid
    async with stack.raw(bob), stack.connect(carol, received := Received()) as other:
        # Bob's socket is not read from here on. 40 MiB for him, 40 times his window.
        before = resident_of(pid)
        for _ in range(10):
            await stack.send(user("alice"), bob, ["x" * 40_000] * 100)
        await stack.wait_stored(bob, 1_000)
        await other.send(carol, "still here")
        await received.wait(1)
        # The buffers of the sender's frames, of the producer and of one window.
        assert resident_of(pid) - before < 24 * MIB


async def test_one_byte_a_second_is_given_up(stack: Stack) -> None:
    bob = user("bob")
    await store(stack, bob, 10)
    gateway = stack.service("gateway", heartbeat=2)
    running = await stack.start(gateway)
    async with Bystander(stack, gateway.url).running():
        before = resident_of(running.pid)
        async with one_byte_a_second(stack, bob, gateway.url) as port:
            # A ping is behind so much that no pong comes in time.
            await eventually(lambda: not is_held(gateway.port, port), "the gateway gives up")
            assert resident_of(running.pid) - before < 8 * MIB
    stack.forget(running)


async def test_a_flood_that_reads_no_answer_is_held_back(stack: Stack) -> None:
    pid = stack.running["gateway"].pid
    bystander, partitions = Bystander(stack), stack.settings.partitions
    # On the bystander's own partition, what is written to the log before his messages is ahead of them.
    to = next(to for to in iter(user, "") if partition_of(to, partitions) != partition_of(bystander.name, partitions))
    async with bystander.running(), flood(stack, user("flood"), to) as sending:
        before = resident_of(pid)
        await eventually(lambda: len(bystander.latencies) > 100, "a bystander gets 100 messages")
        assert not sending.done()
        # The answers to it are 256 KiB, what Kafka has not taken 64 MiB at most.
        assert resident_of(pid) - before < 96 * MIB


async def test_5_000_connections_of_one_user(stack: Stack) -> None:
    count, most = 5_000, stack.settings.max_devices
    pid = stack.running["gateway"].pid
    before = resident_of(pid)
    async with Bystander(stack).running(), connections(stack, user("crowd"), count) as codes:
        assert resident_of(pid) - before < count * 48 * 1024
        # The newest stay; a registry of 5,000 for each message would be everybody's loss.
        await eventually(lambda: codes.count(None) == most, f"{most} connections are left")
        assert set(codes) == {None, 4510}


async def test_10_000_fuzzed_frames(stack: Stack) -> None:
    loop = asyncio.get_running_loop()
    async with Bystander(stack).running(), stack.raw(user("fuzz")) as raw:
        await raw.next_of("caught_up")

        async def send(wrong: list[object]) -> None:
            await raw.send_text(json.dumps(wrong))
            await raw.send({"type": "ping", "ref": "end"})
            answers = [await raw.next() for _ in range(len(wrong) + 1)]
            assert [answer["type"] for answer in answers] == ["error"] * len(wrong) + ["pong"]
            assert not any(answer.get("retry") for answer in answers)

        @given(st.lists(objects, min_size=10, max_size=20))
        @settings(max_examples=700, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def fuzz(fuzzed: list[object]) -> None:
            asyncio.run_coroutine_threadsafe(send(list(bad(fuzzed))), loop).result(WITHIN_S)

        await asyncio.to_thread(fuzz)


async def test_a_flood_of_acknowledgements_is_no_flood_of_requests(stack: Stack) -> None:
    bob = user("bob")
    await stack.send(user("alice"), bob, range(2_000))
    async with stack.raw(bob) as raw:
        got = await raw.messages(2_000)
        # One by one, each higher than the last: they travel together.
        for n in range(0, 2_000, 100):
            await raw.send(*({"type": "ack", "pos": m["pos"]} for m in got[n : n + 100]))
        await raw.ping()
        await eventually(lambda: _is_empty(stack, bob), what="the inbox is empty")


async def _is_empty(stack: Stack, name: str) -> bool:
    return await stack.stored(name) == 0
