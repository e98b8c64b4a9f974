"""One look at the speed of the running stack: ``python -m docker.local.stack run bench.spine``.

50,000 messages of 108 bytes stored for one offline user, then drained with acknowledgements; then latency from one
user to another at a low and a middling rate of single messages. Figures of one run on one machine: no assertion.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import uvloop

from chat_streams.settings import settings
from gateway.auth import mint
from gateway.client import Client, Message

BODY = "x" * 106
"""108 bytes as JSON."""


def client(user: str, **options: object) -> Client:
    """A client of the local gateway."""
    s = settings()
    url = f"ws://{s.gateway_host}:{s.gateway_port}/v1/connect"
    return Client(url, mint(s.jwt_key(), user, 3600), "bench", **options)  # type: ignore[arg-type]


@asynccontextmanager
async def socket(user: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A bare WebSocket after its hello: the reference client costs more than the gateway, and would be measured."""
    s = settings()
    url = f"ws://{s.gateway_host}:{s.gateway_port}/v1/connect"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=["chat.v1"], max_msg_size=8 * 1024 * 1024) as ws,
    ):
        hello = {"type": "hello", "token": mint(s.jwt_key(), user, 3600), "device": "bench"}
        await ws.send_str(msgspec.json.encode(hello).decode())
        assert (await ws.receive_json())["type"] == "welcome"
        yield ws


async def store(to: str, count: int, array: int) -> float:
    """Messages a second until all are confirmed, in frames of ``array`` messages; at most 10,000 unconfirmed."""
    async with socket(f"alice-{secrets.token_hex(3)}") as ws:
        texts = [f'{{"type":"send","id":"m{n}","to":"{to}","body":"{BODY}"}}' for n in range(count)]
        frames = texts if array == 1 else [f"[{','.join(texts[n : n + array])}]" for n in range(0, count, array)]
        confirmed = 0
        room = asyncio.Semaphore(10_000 // array)

        async def confirm() -> None:
            nonlocal confirmed
            freed = 0
            while confirmed < count:
                new = (await ws.receive_str()).count('"sent"')
                confirmed += new
                freed += new
                while freed >= array:
                    freed -= array
                    room.release()

        confirming = asyncio.create_task(confirm())
        began = time.perf_counter()
        for frame in frames:
            await room.acquire()
            await ws.send_str(frame)
        await confirming
        return count / (time.perf_counter() - began)


async def drain(user: str, count: int) -> float:
    """Messages a second from before connecting until all have come, acknowledging each frame."""
    began = time.perf_counter()
    async with socket(user) as ws:
        arrived = 0
        while arrived < count:
            text = await ws.receive_str()
            if text.startswith('{"type":"messages"'):
                arrived += text.count('"pos":')
                until = text.split('"until":"', 1)[1].split('"', 1)[0]
                await ws.send_str(f'{{"type":"ack","pos":"{until}"}}')
        return count / (time.perf_counter() - began)


async def store_and_drain(count: int, array: int) -> dict[str, float]:
    """Both for one offline user."""
    bob = f"bob-{secrets.token_hex(3)}"
    stored = await store(bob, count, array)
    return {"stored_per_s": stored, "drained_per_s": await drain(bob, count)}


async def latency(rate: int, seconds: float) -> dict[str, float]:
    """From when a message was due until the recipient's callback, in ms, at ``rate`` messages a second."""
    run = secrets.token_hex(3)
    alice, bob = f"alice-{run}", f"bob-{run}"
    took: list[float] = []
    done = asyncio.Event()
    total = int(rate * seconds)

    async def on_messages(messages: list[Message]) -> None:
        now = time.perf_counter()
        took.extend(now - float(str(m.body)) for m in messages)
        if len(took) >= total:
            done.set()

    async with client(bob, on_messages=on_messages) as receiver, client(alice) as sender:
        await receiver.wait_caught_up()
        await sender.send(bob, repr(time.perf_counter()))
        tasks = []
        began = time.perf_counter()
        for n in range(total):
            due = began + n / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(sender.send(bob, repr(due))))
        async with asyncio.timeout(60):
            await asyncio.gather(*tasks)
            await done.wait()
    took = sorted(took[1:])
    return {f"p{p}_ms": 1000 * took[min(len(took) - 1, int(len(took) * p / 100))] for p in (50, 99)}


async def main() -> None:
    """Print one JSON object."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    results = {
        "arrays": await store_and_drain(count, array=50),
        "singles": await store_and_drain(count, array=1),
        "latency_50": await latency(50, 6),
        "latency_2000": await latency(2000, 6),
    }
    print(msgspec.json.format(msgspec.json.encode(results)).decode())


if __name__ == "__main__":
    uvloop.run(main())
