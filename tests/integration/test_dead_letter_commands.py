"""What became a dead letter can be found, looked at, and brought back for whom it failed and nobody else."""

from __future__ import annotations

import secrets
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from chat_streams.commands.output import utc
from chat_streams.kafka import names
from chat_streams.kafka.log_reader import LogReader
from chat_streams.kafka.names import INBOX_REQUESTS, INCOMING_MESSAGES, MAX_RECORD, partition_of
from chat_streams.model.records import INCOMING, DeadLetter, Message, Messages
from chat_streams.model.times import now_ms
from chat_streams.operations import dead_letters
from chat_streams.operations.dead_letters import Filter
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack
from tables.inbox import keys
from tests.integration.commands import run

Letter = dict[str, Any]
SECRET = "what bob may read only"


async def produce(stack: Stack, topic: str, partition: int, *values: bytes) -> list[int]:
    """Write records by hand; returns their offsets."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.settings.kafka, max_request_size=2 * MAX_RECORD)
    await producer.start()
    try:
        return [int((await producer.send_and_wait(topic, v, b"key", partition)).offset) for v in values]
    finally:
        await producer.stop()


async def listed(stack: Stack, *filters: object) -> list[Letter]:
    found: list[Letter] = (await run(stack, "dead-letters", "list", "--json", *filters)).json
    return found


async def wait_kept(stack: Stack, count: int, wanted: Filter) -> list[int]:
    """Wait until so many records have failed; returns their numbers."""
    async with LogReader(stack.settings) as reader:

        async def there() -> list[int]:
            found = dead_letters.read(reader, await reader.spans(names.DEAD_LETTERS, since_ms=wanted.since))
            numbers = [n async for n, item in found if isinstance(item, DeadLetter) and wanted.matches(item)]
            return numbers if len(numbers) == count else []

        numbers: list[int] = await eventually(there, f"{count} dead letters as in {wanted}")
        return numbers


async def test_a_message_that_failed_is_delivered_once_its_cause_is_mended(stack: Stack) -> None:
    alice, bob, received, since = user("alice"), user("bob"), Received(), now_ms()
    await stack.redis.set(keys(bob)[0], "no stream")
    (lost,) = await stack.send(alice, bob, [SECRET])
    (number,) = await wait_kept(stack, 1, Filter(app="messaging", since=since))
    filters = "--app", "messaging", "--reason", "wrongtype", "--since", utc(since)
    (letter,) = await listed(stack, *filters)
    assert (letter["number"], letter["topic"], letter["redriven_at"]) == (number, INCOMING_MESSAGES, None)
    assert letter["partition"] == partition_of(bob, stack.settings.partitions)

    # Looking at it gives away nothing of what people write, unless asked for.
    shown = await run(stack, "dead-letters", "show", number)
    assert lost in shown.out
    assert "Traceback" in shown.out
    assert SECRET not in shown.out
    assert SECRET.encode().hex() not in shown.out.replace(" ", "").replace("\n", "")
    whole = (await run(stack, "dead-letters", "show", number, "--bodies", "--json")).json
    assert whole["record"][0]["body"] == SECRET
    assert SECRET.encode() in bytes.fromhex(whole["hex"])

    await stack.redis.delete(keys(bob)[0])
    dry = await run(stack, "dead-letters", "redrive", number, "--dry-run")
    assert f"dead letter {number}" in dry.out
    async with stack.connect(bob, received) as client:
        await client.wait_caught_up()
        assert received.messages == []
        await run(stack, "dead-letters", "redrive", number)
        (message,) = await received.wait(1)
        assert (message.id, message.body, message.sender) == (lost, SECRET, alice)
        (letter,) = await listed(stack, *filters)
        assert letter["redriven_at"] is not None

        # Once more only on demand, and then it is one message still.
        refused = await run(stack, "dead-letters", "redrive", number, code=1)
        assert "--again" in refused.err
        await run(stack, "dead-letters", "redrive", number, "--again")
        await stack.send(alice, bob, ["after"])
        await received.wait(2)
        assert received.bodies() == [SECRET, "after"]

    # Where an inbox overflows, history is asked by position: it must know the one the message has now.
    async def in_history() -> bool:
        async with stack.connect(bob) as client:
            page = await client.history_range(after="0-0", until=message.pos)
        return [(m.id, m.pos) for m in page.messages] == [(lost, message.pos)]

    await eventually(in_history)


async def test_what_failed_in_history_alone_is_not_delivered_again(stack: Stack) -> None:
    alice, bob, received, since = user("alice"), user("bob"), Received(), now_ms()
    partition = partition_of(bob, stack.settings.partitions)
    # No gateway lets an id as long as this through; the chat database has no key for it.
    json_ = b',"id":"x","from":"%b","at":"2026-01-01T00:00:00.000Z","body":1}' % alice.encode()
    record = INCOMING.encode(Messages((Message(bob, alice, "x" * 1100, now_ms(), json_),)))
    (offset,) = await produce(stack, INCOMING_MESSAGES, partition, record)
    (number,) = await wait_kept(stack, 1, Filter(app="history", since=since))
    async with stack.connect(bob, received) as client:
        await client.wait_caught_up()
        await received.wait(1)
        await run(stack, "dead-letters", "redrive", number)
        # It fails again, and is kept as what it was, with the time it failed first.
        await wait_kept(stack, 2, Filter(app="history", since=since))
        first, again = await listed(stack, "--since", utc(since), "--topic", INCOMING_MESSAGES)
        assert first["app"] == again["app"] == "history"
        assert first["offset"] == again["offset"] == offset
        assert first["first_at"] == again["first_at"] == first["last_at"] < again["last_at"]
        await stack.send(alice, bob, [2])
        await received.wait(2)
        assert received.bodies() == [1, 2]


async def test_bulk_redrives_what_is_open_and_matches_and_nothing_else(stack: Stack) -> None:
    since = now_ms()
    await produce(stack, INBOX_REQUESTS, 0, *(secrets.token_bytes(20) for _ in range(5)))
    await produce(stack, INBOX_REQUESTS, 1, b"\xcc\x43\x01\x93\x01")
    all_mine, wanted = Filter(since=since), Filter(reason="does not begin", since=since)
    await wait_kept(stack, 6, all_mine)
    mine = await wait_kept(stack, 5, wanted)
    await run(stack, "dead-letters", "redrive", mine[2])
    (back,) = set(await wait_kept(stack, 6, wanted)) - set(mine)
    filters = "--since", utc(since), "--topic", INBOX_REQUESTS, "--reason", "DOES NOT BEGIN"
    done = await run(stack, "dead-letters", "redrive", "--all", *filters)
    assert len(done.out.splitlines()) == 5
    await wait_kept(stack, 12, all_mine)
    found = await listed(stack, "--since", utc(since))
    # The one that had failed anew was open again, as a new one.
    assert [letter["number"] for letter in found if letter["redriven_at"]] == sorted([*mine, back])
    assert sorted(letter["first_at"] for letter in found[7:]) == sorted(
        found[i]["first_at"] for i in range(6) if found[i]["number"] in mine
    )
    assert await listed(stack, "--since", utc(since), "--limit", 2) == found[-2:]


async def test_the_largest_record_there_can_be_holds_up_nobody(stack: Stack) -> None:
    alice, bob, received, since = user("alice"), user("bob"), Received(), now_ms()
    value = secrets.token_bytes(MAX_RECORD - 200)
    (offset,) = await produce(stack, INCOMING_MESSAGES, partition_of(bob, stack.settings.partitions), value)
    await stack.send(alice, bob, ["next"])
    async with stack.connect(bob, received):
        await received.wait(1)
    await wait_kept(stack, 2, Filter(since=since))
    found = await listed(stack, "--since", utc(since))
    assert {(letter["app"], letter["offset"], letter["size"]) for letter in found} == {
        ("messaging", offset, len(value)),
        ("history", offset, len(value)),
    }
    shown = (await run(stack, "dead-letters", "show", found[0]["number"], "--bodies", "--json")).json
    assert bytes.fromhex(shown["hex"]) == value


@pytest.mark.parametrize("action", ["show", "redrive"])
async def test_a_number_that_is_none_is_one_clear_line(stack: Stack, action: str) -> None:
    done = await run(stack, "dead-letters", action, 10**9, code=1)
    assert (done.out, done.err) == (
        "",
        "Error: no dead letter has the number 1000000000; 'dead-letters list' shows which there are\n",
    )
