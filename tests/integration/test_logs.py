"""The logs of all services: JSON, without message bodies."""

from __future__ import annotations

import json

from aiokafka import AIOKafkaProducer

from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.model.records import MAGIC, VERSION
from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack

SERVICES = ("gateway", "messaging", "notification", "history")


async def test_no_log_has_a_body_or_a_token(stack: Stack) -> None:
    alice, bob, marker = user("alice"), user("bob"), user("marker")
    token = stack.token(alice)
    received = Received()
    async with stack.connect(alice) as client, stack.connect(bob, received):
        for number in range(3):
            await client.send(bob, {"text": marker, "n": number})
        await received.wait(3)
    async with stack.socket() as raw:
        await raw.hello(token, "desk")
        await raw.send_text(f'{{"type":"send","id":"{marker} no id","to":"{bob}","body":"{marker}"}}')
        await raw.send_text(f'{{"type":"send","id":"m","to":"{bob}","body":"{marker}"')
        await raw.closed()
    # A record that becomes a dead letter is logged, its content is not.
    producer = AIOKafkaProducer(bootstrap_servers=stack.settings.kafka)
    await producer.start()
    try:
        sent = await producer.send_and_wait(INCOMING_MESSAGES, MAGIC + bytes([VERSION]) + marker.encode(), partition=0)
    finally:
        await producer.stop()
    log = stack.running["messaging"].part.log
    where = {"topic": INCOMING_MESSAGES, "partition": 0, "offset": sent.offset}

    def told() -> list[str]:
        lines = [json.loads(line) for line in log.read_text().splitlines() if '"dead letter"' in line]
        # Other tests leave dead letters in the same log.
        return [line["error"] for line in lines if where.items() <= line.items()]

    assert (await eventually(told, what="the dead letter is told of"))[0].startswith("UndecodableRecord(")
    for path in stack.layout.logs.glob("*.log"):
        text = path.read_text(errors="replace")
        assert marker not in text, path.name
        assert token not in text, path.name


def test_each_line_is_json(stack: Stack) -> None:
    for name in SERVICES:
        for line in stack.running[name].part.log.read_text().splitlines():
            if line.strip():
                assert {"event", "level", "timestamp"} <= json.loads(line).keys(), (name, line)
