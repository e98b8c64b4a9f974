"""How fast the history worker writes to the chat database, and how far behind a message's ``sent`` it is."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import aioboto3

from bench.links import Watch, body, pump
from bench.measure import Meter, summary
from bench.scale import Scale
from bench.systems import System
from bench.systems.connect_chat import ConnectChat
from docker.local.layout import HOST

SHARE = 10
"""So many times fewer messages than other workloads have: DynamoDB Local is slow."""
CONVERSATIONS = 10
SAMPLES = 20


async def run(system: System, scale: Scale) -> dict[str, Any]:
    """Messages a second into DynamoDB Local, in memory; ``lag_s`` of single messages after that."""
    assert isinstance(system, ConnectChat)
    count = scale.messages // SHARE
    run_id = secrets.token_hex(3)
    alice, others = f"alice-{run_id}", [f"bob{n}-{run_id}" for n in range(CONVERSATIONS)]
    session = aioboto3.Session(aws_access_key_id="local", aws_secret_access_key="local", region_name="eu-central-1")  # noqa: S106
    async with session.client("dynamodb", endpoint_url=f"http://{HOST}:{system.layout.dynamodb}") as database:

        async def until(other: str, wanted: int, pause: float) -> None:
            while (await _count(database, alice, other)) < wanted:
                await asyncio.sleep(pause)

        await system.start_service("history")
        link = await system.connect(alice, receive=False)
        watch = Watch([link])
        try:
            # What was sent before is written first, and not measured.
            link.write(link.frame(f"first-{run_id}", 90_000_000, body(0, 108)))
            await until(f"first-{run_id}", 1, 0.1)
            frames = link.frames([(others[n % CONVERSATIONS], n, body(n, 108)) for n in range(count)])
            with Meter(system.processes()) as meter:
                await pump(link, frames, 1, lambda done: 2_000 - done + watch.confirmed)
                for place, other in enumerate(others):
                    await until(other, len(range(place, count, CONVERSATIONS)), 0.1)
            lags = []
            for n in range(SAMPLES):
                other, confirmed = f"late{n}-{run_id}", watch.confirmed
                link.write(link.frame(other, 91_000_000 + n, body(n, 108)))
                await watch.until(lambda: watch.confirmed > confirmed)  # noqa: B023
                began = time.perf_counter()
                await until(other, 1, 0.01)
                lags.append(time.perf_counter() - began)
        finally:
            link.close()
            system.stop_service("history")
    return {"value": count / meter.seconds, "lag_s": summary(lags), **meter.result(count)}


async def _count(database: Any, one: str, other: str) -> int:
    query: dict[str, Any] = {
        "TableName": "chat_history",
        "KeyConditionExpression": "conversation = :c",
        "ExpressionAttributeValues": {":c": {"S": "dm#" + "#".join(sorted((one, other)))}},
        "Select": "COUNT",
    }
    count = 0
    while True:
        answer = await database.query(**query)
        count += int(answer["Count"])
        if "LastEvaluatedKey" not in answer:
            return count
        query["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
