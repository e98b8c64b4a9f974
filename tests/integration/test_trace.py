"""Where a message is, and why it is not where it should be: ``trace``. Who it is for: ``user``."""

from __future__ import annotations

from typing import Any

from chat_streams.kafka import names
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import partition_of
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tables.inbox import keys
from tests.integration.commands import run

Trace = dict[str, Any]


async def trace(stack: Stack, message_id: str, *options: object) -> Trace:
    found: Trace = (await run(stack, "trace", message_id, "--json", *options)).json
    return found


def what(found: Trace) -> list[str]:
    return [hop["what"] for hop in found["hops"]]


async def test_a_delivered_message_at_each_stage_and_its_retry(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    message_id = user("id")
    async with stack.connect(alice) as sender, stack.connect(bob, received) as client:
        await client.wait_caught_up()
        await sender.send(bob, "hello", id=message_id)
        await received.wait(1)
        await stack.wait_stored(bob, 0)
        await sender.send(bob, "hello", id=message_id)
        await sender.send(bob, "after")
        await received.wait(2)

        async def in_history() -> bool:
            return len((await sender.history(bob)).messages) >= 2

        await eventually(in_history)
    found = await trace(stack, message_id, "--to", bob)
    assert (found["sender"], found["to"], found["fate"]) == (alice, bob, "acknowledged")
    assert list(found["acknowledged"]) == ["phone"]
    assert found["in_history"] is True
    assert found["position"] == received.messages[0].pos
    first, again = found["copies"]
    assert (first["dropped"], again["dropped"]) == (False, True)
    stages = what(found)
    wanted = ["accepted", "logged", "pushed", "acknowledged"]
    assert [stage for stage in stages if stage in wanted][:4] == wanted
    assert all(hop["ms"] >= 0 for hop in found["hops"])
    # The same without knowing whose it was, for the eye.
    table = (await run(stack, "trace", message_id)).out
    assert "since accepted" in table
    assert f"acknowledged: {bob}'s device phone acknowledged it at" in table


async def test_a_message_that_waits_and_why(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    _, _, message_id = await stack.send(alice, bob, range(3))
    found = await trace(stack, message_id, "--to", bob)
    assert found["fate"] == "pending"
    assert f"{bob} has no connection and had none since" in found["verdict"]
    assert found["inbox"]["before"] == 2

    async with stack.raw(bob) as raw:
        got = await raw.messages(3)
        found = await trace(stack, message_id, "--to", bob)
        assert "first page" in what(found)
        assert f"no device of {bob} has acknowledged it" in found["verdict"]
        assert "device phone" in found["verdict"]
        there = (await run(stack, "user", bob, "--json")).json
        (connection,) = there["connections"]
        assert (there["online"], connection["device"], connection["gateway"]) == (True, "phone", "leased")
        assert (there["inbox"]["messages"], there["inbox"]["senders"]) == (3, {alice: 3})
        await raw.ack(got[0]["pos"])
        await stack.wait_stored(bob, 2)

    async def gone() -> Trace:
        found = await trace(stack, message_id, "--to", bob)
        return found if "disconnected" in what(found) else {}

    found = await eventually(gone)
    assert f"{bob} has no connection since" in found["verdict"]
    assert "and not acknowledged" in found["verdict"]
    assert found["inbox"]["before"] == 1

    shown = (await run(stack, "user", bob)).out
    for part in (
        f"{bob}: offline since ",
        "in the inbox 2 messages, ",
        got[0]["pos"],
        connection["connection"][:8],
        alice,
    ):
        assert part in shown

    # Redis loses it: nobody is told that it waits.
    await stack.redis.xdel(keys(bob)[0], got[2]["pos"])
    found = await trace(stack, message_id, "--to", bob, "--sender", alice)
    assert found["fate"] == "missing"
    assert "no device" in found["verdict"]


async def test_a_dead_letter_says_what_brings_it_back(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.redis.set(keys(bob)[0], "no stream")
    (message_id,) = await stack.send(alice, bob, ["lost"])

    async def dead() -> Trace:
        found = await trace(stack, message_id, "--to", bob)
        return found if found["fate"] == "dead-lettered" else {}

    found = await eventually(dead)
    (number,) = found["dead_letters"]
    assert f"redrive {number}" in found["verdict"]
    await stack.redis.delete(keys(bob)[0])
    await run(stack, "dead-letters", "redrive", number)
    await stack.wait_stored(bob, 1)
    found = await trace(stack, message_id, "--to", bob)
    assert found["fate"] == "pending"
    assert [stage for stage in what(found) if stage in ("dead letter", "redriven")] == ["dead letter", "redriven"]
    assert found["position"] == str(await stack.top(bob))


async def test_an_unknown_id_says_what_was_read(stack: Stack) -> None:
    bob, unknown = user("bob"), user("id")
    partition = partition_of(bob, stack.settings.partitions)
    async with LogReader(stack.settings) as reader:
        (span,) = await reader.spans(names.INCOMING_MESSAGES, [partition])
    one = await run(stack, "trace", unknown, "--to", bob, code=1)
    assert f"offsets {partition} ({span.first} to " in one.err
    assert bob in one.err
    all_of_them = await run(stack, "trace", unknown, code=1)
    for number in range(stack.settings.partitions):
        assert f" {number} (" in all_of_them.err
    assert (one.out, len(one.err.splitlines())) == ("", 1)
    nobody = await run(stack, "user", unknown, code=1)
    assert f"There is no user {unknown}: no inbox" in nobody.err
