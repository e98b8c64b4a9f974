"""What is measured, the same for each system: each workload returns its figures, with ``value`` first among them."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hdrh.histogram import HdrHistogram

from bench import history
from bench.clock import Ticks
from bench.links import OUTSTANDING, Link, LinkError, Numbers, Watch, body, in_turn, pump
from bench.measure import Meter, resident
from bench.scale import Scale
from bench.systems import System

Result = dict[str, Any]
SIZE = 108
LATE_SECONDS = 15.0
SUSTAINED_MS = 50.0


class Skipped(Exception):
    """A system can't do this; the text says why."""


@dataclass(frozen=True)
class Workload:
    """``limit`` is in seconds, of one round with one system; ``only`` names the one system that has it.

    With ``rounds`` it is in the first so many only: what takes minutes and is in no comparison's goal.

    With ``cold`` the system is started for it alone, without a warm-up: memory that earlier work gave back to the
    process, not to the kernel, would hide what this takes.
    """

    name: str
    title: str
    unit: str
    run: Callable[[System, Scale], Awaitable[Result]]
    limit: float = 60.0
    higher_is_better: bool = True
    quick: bool = False
    only: str | None = None
    cold: bool = False
    rounds: int | None = None


def fresh(name: str) -> str:
    """A user nobody has written to yet."""
    return f"{name}-{secrets.token_hex(4)}"


def bounded(system: System, count: int) -> int:
    """So many messages, or fewer for a system that stores slowly."""
    return count * system.most // 50_000


def to_one(link: Link, to: str, count: int, size: int = SIZE, array: int = 1) -> list[bytes]:
    """Frames of messages 0 to ``count`` - 1 for one user."""
    return link.frames([(to, number, body(number, size)) for number in range(count)], array)


async def write_all(link: Link, frames: Sequence[bytes], count: int, array: int = 1) -> None:
    """Send with bounded outstanding, and wait for the last confirmation."""
    watch = Watch([link])
    start = watch.confirmed
    await pump(link, frames, array, lambda done: OUTSTANDING - done + watch.confirmed - start)
    await watch.until(lambda: watch.confirmed - start >= count)


async def fill(system: System, counts: dict[str, int]) -> None:
    """Store messages for offline users, not measured."""
    await system.prepare(list(counts))
    recipients = [user for user, count in counts.items() for _ in range(count)]
    messages = [(user, number, body(number, SIZE)) for number, user in enumerate(recipients)]
    link = await system.connect(fresh("filler"), receive=False)
    await write_all(link, link.frames(messages, system.array), len(messages), system.array)
    await system.stored(counts)
    link.close()


def rate(meter: Meter, count: int, **more: Any) -> Result:
    """Messages a second as the value."""
    return {"value": count / meter.seconds, **meter.result(count), **more}


async def store(system: System, scale: Scale, array: int = 1) -> Result:
    """For one offline user, until all are in the inbox; ``accepted_per_s`` until all were confirmed."""
    count = bounded(system, scale.messages) // array * array
    bob = fresh("bob")
    await system.prepare([bob])
    link = await system.connect(fresh("alice"), receive=False)
    frames = to_one(link, bob, count, array=array)
    with Meter(system.processes()) as meter:
        await write_all(link, frames, count, array)
        accepted = meter.lap()
        await system.stored({bob: count})
    link.close()
    return rate(meter, count, accepted_per_s=count / accepted, **await system.inspect(bob))


async def store_arrays(system: System, scale: Scale) -> Result:
    """The same in arrays of 50."""
    if system.array == 1:
        raise Skipped("has no arrays: compare its single messages, which are written in pieces of many, too")
    return await store(system, scale, array=system.array)


async def store_many(system: System, scale: Scale) -> Result:
    """From one sender, for many offline users in random order."""
    count = bounded(system, scale.messages)
    users = [fresh("many") for _ in range(min(scale.users, count // 5))]
    each = count // len(users)
    await system.prepare(users)
    recipients = users * each
    random.shuffle(recipients)
    link = await system.connect(fresh("alice"), receive=False)
    frames = link.frames([(user, n, body(n, SIZE)) for n, user in enumerate(recipients)])
    with Meter(system.processes()) as meter:
        await write_all(link, frames, count)
        accepted = meter.lap()
        await system.stored(dict.fromkeys(users, each))
    link.close()
    return rate(meter, count, accepted_per_s=count / accepted, users=len(users))


async def drain(system: System, scale: Scale, count: int | None = None) -> Result:
    """From before connecting until the inbox is empty, everything acknowledged."""
    if count is None:
        count = bounded(system, scale.messages)
    elif count > 2 * system.most and system.most < 50_000:
        raise Skipped(f"storing {count:,} messages takes it too long")
    bob = fresh("bob")
    await fill(system, {bob: count})
    with Meter(system.processes()) as meter:
        link = await system.connect(bob, receive=True)
        watch = Watch([link])
        await watch.until(lambda: watch.received >= count)
        arrived = meter.lap()
        await system.emptied({bob: link})
    link.close()
    return rate(meter, count, arrived_per_s=count / arrived)


def inbox(count: int) -> Callable[[System, Scale], Awaitable[Result]]:
    """Seconds until an inbox of ``count`` messages is empty."""

    async def run(system: System, scale: Scale) -> Result:
        found = await drain(system, scale, count)
        return {**found, "value": found["seconds"]}

    return run


async def storm(system: System, scale: Scale) -> Result:
    """Many users with 50 messages each connect at once; until all inboxes are empty."""
    users = [fresh("storm") for _ in range(bounded(system, 50 * scale.storm_users) // 50)]
    count = 50 * len(users)
    await fill(system, dict.fromkeys(users, 50))
    watch = Watch([])
    links: dict[str, Link] = {}

    async def come(user: str) -> None:
        links[user] = await system.connect(user, receive=True)
        watch.add(links[user])

    with Meter(system.processes()) as meter:
        await in_turn([lambda user=user: come(user) for user in users], len(users))  # type: ignore[misc]
        connected = meter.lap()
        await watch.until(lambda: watch.received >= count)
        await system.emptied(links)
    for link in links.values():
        link.close()
    return rate(meter, count, users=len(users), connected_s=connected)


async def pair(system: System) -> tuple[str, Link, Link]:
    """A user who receives, ready, and a sender."""
    bob = fresh("bob")
    await system.prepare([bob])
    receiver = await system.connect(bob, receive=True)
    sender = await system.connect(fresh("alice"), receive=False)
    # The first message shows that the receiver is known everywhere.
    sender.write(sender.frame(bob, 99_999_999, body(99_999_999, SIZE)))
    watch = Watch([receiver])
    await watch.until(lambda: watch.received >= 1)
    return bob, receiver, sender


async def online(system: System, scale: Scale, size: int = SIZE) -> Result:
    """One user to another one who is there; until the last has arrived."""
    count = max(200, min(scale.messages, 24 * 2**20 // size))
    bob, receiver, sender = await pair(system)
    frames = to_one(sender, bob, count, size)
    watch, arrived = Watch([sender]), Watch([receiver])
    start, got = watch.confirmed, arrived.received
    # Behind the confirmations, the receiver may be behind as well: neither queue grows without limit.
    most = min(OUTSTANDING, max(50, 4 * 2**20 // size))
    with Meter(system.processes()) as meter:
        await pump(sender, frames, 1, lambda done: most - done + watch.confirmed - start)
        await arrived.until(lambda: arrived.received - got >= count)
    sender.close()
    receiver.close()
    return rate(meter, count, mib_per_s=count * size / 2**20 / meter.seconds)


def sized(size: int) -> Callable[[System, Scale], Awaitable[Result]]:
    """Online with bodies of ``size`` bytes."""
    return lambda system, scale: online(system, scale, size)


async def paced(
    system: System, seconds: float, per_second: float, send: Callable[[int], None], receivers: Sequence[Link]
) -> Result:
    """Latencies, in ms, from when each message was due until its body arrived, at a constant rate.

    That a late message is measured from its due time is the correction for coordinated omission. The first fifth
    warms up and is not counted.
    """
    total = int(seconds * per_second)
    warm = total // 5
    latencies = HdrHistogram(1, 60_000_000, 3)
    arrived = 0
    finished = asyncio.Event()

    def tap(numbers: Numbers, data: bytes) -> None:
        nonlocal arrived
        now = time.perf_counter()
        for number in numbers(data):
            if number < total:
                arrived += 1
                if number >= warm:
                    latencies.record_value(int((now - began - number / per_second) * 1e6))
        if arrived >= total:
            finished.set()

    for link in receivers:
        link.tap = partial(tap, Numbers())
    with Meter(system.processes()) as meter, Ticks(1 / per_second) as ticks:
        # Were it later, each tick might come just before a message is due, and all would be sent a tick late.
        began = ticks.began
        sent = 0
        async for _ in ticks:
            due = min(total, int((time.perf_counter() - began) * per_second) + 1)
            for number in range(sent, due):
                send(number)
            sent = max(sent, due)
            if sent >= total:
                break
        try:
            async with asyncio.timeout(LATE_SECONDS):
                await finished.wait()
        except TimeoutError:
            raise LinkError(f"{arrived:,} of {total:,} messages had come {LATE_SECONDS:g} s after the last") from None
    percentiles = {f"p{p:g}": latencies.get_value_at_percentile(p) / 1000 for p in (50, 99, 99.9)}
    return {**percentiles, "max": latencies.get_max_value() / 1000, "rate": per_second, **meter.result(total)}


def latency(per_second: int) -> Callable[[System, Scale], Awaitable[Result]]:
    """One user to another at a rate, each message in its own frame; the value is p99 in ms."""

    async def run(system: System, scale: Scale) -> Result:
        bob, receiver, sender = await pair(system)
        seconds = max(scale.seconds, min(3 * scale.seconds, 1_000 / per_second))
        frames = to_one(sender, bob, int(seconds * per_second))
        Watch([sender, receiver])
        result = await paced(system, seconds, per_second, lambda n: sender.write(frames[n]), [receiver])
        for link in (sender, receiver):
            link.close()
        return {"value": result["p99"], **result}

    return run


async def crowd(system: System, count: int) -> dict[str, Link]:
    """Users who are connected and reached."""
    users = [fresh("user") for _ in range(count)]
    await system.prepare(users)
    links = await in_turn([lambda user=user: system.connect(user, receive=True) for user in users], 50)  # type: ignore[misc]
    watch = Watch(links)
    for number, (user, link) in enumerate(zip(users, links, strict=True)):
        link.write(link.frame(user, 99_000_000 + number, body(99_000_000 + number, SIZE)))
    await watch.until(lambda: watch.received >= count)
    return dict(zip(users, links, strict=True))


async def isolated(system: System, scale: Scale) -> Result:
    """Each message from another connection to a random recipient: the highest rate of a ladder with p99 <= 50 ms.

    The ladder ends after two rates that are not sustained: one may be a hiccup of the machine.
    """
    links = await crowd(system, scale.senders)
    users, connections = list(links), list(links.values())
    Watch(connections)
    # What a thousand new connections leave to be done is not a part of it.
    await asyncio.sleep(scale.settle)
    best: Result = {"rate": 0.0, "server_cpu_us": 0.0}
    steps: list[Result] = []
    number = 0
    try:
        for per_second in (500, 1_000, 2_000, 4_000, 6_000, 8_000, 10_000, 12_500, 15_000, 20_000, 25_000, 30_000):
            total = int(scale.seconds / 2 * per_second)
            # Ids must not come again: the frame's number goes on, the body's starts anew.
            order = random.sample(connections, len(connections))
            frames = [
                order[n % len(order)].frame(random.choice(users), number + n, body(n, SIZE)) for n in range(total)
            ]
            number += total
            try:
                step = await paced(
                    system,
                    scale.seconds / 2,
                    per_second,
                    lambda n, f=frames, o=order: o[n % len(o)].write(f[n]),  # type: ignore[misc]
                    connections,
                )
            except LinkError as error:
                steps.append({"rate": per_second, "error": str(error)})
                break
            steps.append(step)
            if step["p99"] <= SUSTAINED_MS:
                best = step
            elif len(steps) > 1 and steps[-2]["p99"] > SUSTAINED_MS:
                break
    finally:
        for link in connections:
            link.close()
    return {**best, "value": best["rate"], "steps": steps, "senders": len(users)}


async def mixed(system: System, scale: Scale) -> Result:
    """Nine of ten users connected, one of ten offline; messages from connected users to random ones of all."""
    links = await crowd(system, scale.senders * 9 // 10)
    away = [fresh("away") for _ in range(scale.senders // 10)]
    await system.prepare(away)
    users, senders = [*links, *away], list(links.values())
    count = min(scale.messages, 10 * bounded(system, scale.messages))
    recipients = [random.choice(users) for _ in range(count)]
    frames = [senders[n % len(senders)].frame(to, n, body(n, SIZE)) for n, to in enumerate(recipients)]
    offline = {user: recipients.count(user) for user in away}
    there = count - sum(offline.values())
    watch = Watch(senders)
    confirmed, received = watch.confirmed, watch.received
    watch_to = confirmed + count
    with Meter(system.processes()) as meter:
        written = 0
        while written < count:
            least = min(100, count - written)
            await watch.until(lambda: OUTSTANDING - written + watch.confirmed - confirmed >= least)  # noqa: B023
            end = min(count, written + OUTSTANDING - written + watch.confirmed - confirmed)
            for place in range(written, end):
                senders[place % len(senders)].write(frames[place])
                if place % 100 == 0:
                    await asyncio.sleep(0)
            written = end
        await watch.until(lambda: watch.confirmed >= watch_to and watch.received - received >= there)
        await system.stored(offline)
    for link in senders:
        link.close()
    return rate(meter, count, users=len(users))


async def idle(system: System, scale: Scale) -> Result:
    """KiB of memory of all servers for a connected user; connections a second until all are there."""
    users = [fresh("idle") for _ in range(scale.idle)]
    # What a system keeps of a user without a connection is a part of it: Mosquitto's sessions, NATS' consumers.
    before = resident(system.processes())
    await system.prepare(users)
    with Meter(system.processes()) as meter:
        links = await in_turn([lambda user=user: system.connect(user, receive=True) for user in users], 200)  # type: ignore[misc]
    watch = Watch(links)
    await asyncio.sleep(scale.settle)
    await watch.until(lambda: True)
    after = resident(system.processes())
    kib = {name: (after[name] - size) / 1024 / len(links) for name, size in before.items() if name in after}
    with Meter(system.processes()) as rest:
        await asyncio.sleep(scale.settle)
    for link in links:
        link.close()
    return {
        "value": sum(kib.values()),
        "connections_per_s": len(links) / meter.seconds,
        "kib": kib,
        "idle_cpu_share": {name: used / rest.seconds for name, used in rest.cpu.items()},
        **meter.result(len(links)),
    }


BODIES = (16, 256, 1_024, 4_096, 16_384, 65_536)
INBOXES = (1_000, 10_000, 100_000, 1_000_000)
RATES = (50, 2_000, 10_000)
FEW = 2

WORKLOADS: list[Workload] = [
    Workload("history", "History write rate", "messages/s", history.run, 120, only="connect_chat", quick=True),
    Workload("store", "Store, one offline user, single frames", "messages/s", store, quick=True),
    Workload("store_arrays", "Store, one offline user, arrays of 50", "messages/s", store_arrays, quick=True),
    Workload("store_many", "Store, 10,000 offline users", "messages/s", store_many, quick=True),
    Workload("drain", "Drain 50,000, acks included", "messages/s", drain, 120, quick=True),
    Workload("storm", "Reconnect storm, 1,000 users x 50", "messages/s", storm, 120, quick=True),
    Workload("online", "Online, one to one", "messages/s", online, quick=True),
    *(
        Workload(f"latency_{n}", f"Latency p99 at {n:,}/s", "ms", latency(n), higher_is_better=False, quick=True)
        for n in RATES
    ),
    Workload("isolated", "Isolated senders, sustained at p99 <= 50 ms", "messages/s", isolated, 180),
    Workload("mixed", "Mixed, 90 % online", "messages/s", mixed, 90),
    *(Workload(f"body_{n}", f"Online, bodies of {n:,} bytes", "messages/s", sized(n), rounds=FEW) for n in BODIES),
    *(
        Workload(
            f"inbox_{n}", f"Time to empty an inbox of {n:,}", "s", inbox(n), 240, higher_is_better=False, rounds=FEW
        )
        for n in INBOXES
    ),
    Workload("idle", "Memory of an idle connection", "KiB", idle, 240, higher_is_better=False, cold=True, rounds=FEW),
]
