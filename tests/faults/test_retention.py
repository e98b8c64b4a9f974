"""Kafka deletes what was never applied: who misses messages is told, and the audit counts until somebody has seen."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from chat_streams.kafka.names import INCOMING_MESSAGES, SESSION_EVENTS
from chat_streams.model.position import Position
from docker.local.probes import Raw, eventually, user
from docker.local.temporary_stack import Stack, stop
from tests.faults.retention import delete_records, lag, unapplied, workers
from tests.integration.commands import Done, run

SERVICES = ("messaging", "notification", "history")
MANY = 400
"""Messages of 60 kB each: three times as much as a worker holds of a topic."""
MISSED = -2


async def is_applied(stack: Stack) -> bool:
    """Return whether no service is behind."""
    return not any([await lag(stack, name) for name in SERVICES])


async def audit(stack: Stack, *options: str, code: int = 0) -> Done:
    return await run(stack, "audit", "--json", *options, code=code)


async def bodies_until(raw: Raw, count: int) -> list[object]:
    return [m["body"] for m in await raw.messages(count)]


@pytest.mark.long
async def test_what_retention_took_unapplied_is_missed_counted_and_acknowledged(stack: Stack) -> None:
    alice, bob, carol, dave = (user(name) for name in ("alice", "bob", "carol", "dave"))
    for device in ("phone", "laptop"):
        async with stack.raw(bob, device):
            pass
    await stack.send(alice, bob, range(3))
    await stack.wait_stored(bob, 3)
    async with stack.raw(carol) as online:
        await stack.send(alice, carol, range(2))
        assert await bodies_until(online, 2) == [0, 1]
        await online.ack(online.until)
        await stack.wait_stored(carol, 0)
        await eventually(lambda: is_applied(stack), "all is applied")
        assert (await audit(stack)).json["clean"]

        names = [name for service in SERVICES for name in workers(stack, service)]
        await asyncio.gather(*(stop(stack.running[name]) for name in names))
        async with stack.connect(alice, device="sender") as sender:
            for body in (10, 11, 12):
                for to in (bob, carol):
                    await sender.send(to, body)
        # Dave's connection is logged, and gone before anybody reads of it.
        async with stack.raw(dave) as newcomer:
            for name in SERVICES:
                await eventually(partial(lag, stack, name), f"{name} is behind")
            spans = [span for name in SERVICES for span in await unapplied(stack, name)]
            await delete_records(stack, spans)
            lost = {
                name: [s for s in await unapplied(stack, name) if s.first < s.end] for name in ("messaging", "history")
            }
            assert any(s.topic == SESSION_EVENTS for s in lost["messaging"])
            messages = [s for s in lost["messaging"] if s.topic == INCOMING_MESSAGES]
            # Before anybody has noted it, the audit sees it by itself.
            early = await audit(stack, "--wait", "0", code=1)
            assert early.json["retention"]["lost_records"] >= sum(s.end - s.first for s in messages)

            await asyncio.gather(*(stack.start(stack.running[name].part) for name in names))
            # Nothing new comes, and yet nobody is behind.
            await eventually(lambda: is_applied(stack), "nobody is behind")

            missed = await online.next_of("missed")
            assert Position.parse(missed["after"]) < Position.parse(missed["until"])
            await online.ack(online.until)
            await stack.send(alice, carol, [20])
            await stack.send(alice, dave, [21])
            assert await bodies_until(online, 1) == [20]
            assert await bodies_until(newcomer, 1) == [21]
            await online.ack(online.until)
            # The answer about the range is final: history has lost it, too.
            await online.send({"type": "history", "ref": "h", "after": missed["after"], "until": missed["until"]})
            found = await online.next_of("history")
            assert (found["messages"], found["before"]) == ([], None)
    await stack.send(alice, bob, [22])
    for device in ("phone", "laptop"):
        for told in (1, 0):
            async with stack.raw(bob, device) as raw:
                if told:
                    assert await bodies_until(raw, 3) == [0, 1, 2]
                    await raw.next_of("missed")
                    assert await bodies_until(raw, 1) == [22]
                await raw.next_of("caught_up")
                await raw.ack(raw.until)
                await raw.ping()
                assert sum(frame["type"] == "missed" for frame in raw.seen) == told
            await eventually(lambda: is_applied(stack), "acknowledgements are applied")
    await stack.wait_stored(bob, 0)

    # The worker was told where it stood before, so what it notes is what was gone.
    report = await audit(stack, code=1)
    ranges = report.json["retention"]["ranges"]
    for name, spans in lost.items():
        noted = {
            (r["topic"], r["partition"], r["first"], r["end"])
            for r in ranges
            if r["app"] == name and r["topic"] == INCOMING_MESSAGES
        }
        assert noted == {tuple(s) for s in spans if s.topic == INCOMING_MESSAGES}
    assert all(r["at"] and r["generation"] == 1 for r in ranges)
    count = report.json["retention"]["lost_records"]
    text = await run(stack, "audit", code=1)
    assert f"{count:,} records" in text.out
    seen = await run(stack, "audit", "--acknowledge-loss", "--json")
    assert f"{count:,} records" in seen.err
    after = (await audit(stack)).json
    assert after["clean"]
    assert (after["retention"]["lost_records"], after["retention"]["acknowledged_records"]) == (0, count)


@pytest.mark.long
async def test_what_goes_while_a_worker_waits_for_redis_is_missed_behind_what_the_worker_holds(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    redis = stack.running["redis"]
    async with stack.raw(bob):
        pass
    async with stack.connect(alice, device="sender") as sender:
        await sender.send(bob, -1)
        await stack.wait_stored(bob, 1)
        redis.pause()
        try:
            # More than a worker takes from Kafka while it waits.
            await sender.send_many((bob, [n, "x" * 60_000]) for n in range(MANY))
            await delete_records(stack, await unapplied(stack, "messaging", [INCOMING_MESSAGES]))
        finally:
            redis.resume()
        await eventually(partial(is_applied, stack), "all is applied, though nothing new comes")
        await sender.send(bob, MANY)
    found: list[int] = []
    async with stack.raw(bob) as raw:
        while not found or found[-1] != MANY:
            frame = await raw.next()
            if frame["type"] == "messages":
                found += [m["body"][0] if isinstance(m["body"], list) else m["body"] for m in frame["messages"]]
                await raw.ack(raw.until)
            elif frame["type"] == "missed":
                found.append(MISSED)
    gap = found.index(MISSED)
    assert gap < MANY, "the log had more than the worker held"
    assert found == [*range(-1, gap - 1), MISSED, MANY]
    assert (await audit(stack, "--acknowledge-loss")).json["clean"]
