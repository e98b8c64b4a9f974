"""Clients that mean no good, or are broken: the gateway stays within its bounds, and the others don't notice."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.integration.support import Received, Stack, eventually, user

MIB = 1024 * 1024
FRAMES = 3_000


def resident(pid: int) -> int:
    """Bytes of memory a process holds."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return int(fields["VmRSS"].split()[0]) * 1024


async def test_a_client_that_never_reads_fills_its_window_and_no_more(stack: Stack) -> None:
    bob, carol = user("bob"), user("carol")
    pid = stack.running["gateway"].pid
    async with stack.raw(bob), stack.connect(carol, received := Received()) as other:
        # Bob's socket is not read from here on. 40 MiB for him, 40 times his window.
        before = resident(pid)
        for _ in range(10):
            await stack.send(user("alice"), bob, ["x" * 40_000] * 100)
        await stack.wait_stored(bob, 1_000, 60)
        await other.send(carol, "still here")
        await received.wait(1)
        # The buffers of the sender's frames, of the producer and of one window.
        assert resident(pid) - before < 24 * MIB


async def test_garbage_is_answered_object_by_object_and_harms_nobody(stack: Stack) -> None:
    bob, carol = user("bob"), user("carol")
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    values: list[Any] = [None, 1, -1.5, True, "", "a b", "x" * 200, [], {}, {"a": 1}, "0-0", "1-", "send", "9" * 30]
    names = ["type", "id", "to", "body", "pos", "ref", "with", "after", "until", "limit", "token", "device"]
    async with stack.raw(bob) as raw, stack.connect(carol, received := Received()) as other:
        await raw.next_of("caught_up")
        for _ in range(FRAMES // 100):
            batch: list[dict[str, Any]] = [
                {"type": rng.choice(["send", "ack", "history", "nope"])}
                | {name: rng.choice(values) for name in rng.sample(names[1:], rng.randrange(4))}
                for _ in range(100)
            ]
            # What a value makes good by chance would be no garbage.
            bad = [frame for frame in batch if not {"id", "to", "body"} <= frame.keys() and "pos" not in frame]
            bad = [frame | {"limit": "many"} if frame["type"] == "history" else frame for frame in bad]
            await raw.send_text(json.dumps(bad))
            answers = [await raw.next() for _ in bad]
            assert {answer["type"] for answer in answers} == {"error"}, f"seed {seed}"
            assert not any(answer["retry"] for answer in answers)
        await raw.ping()
        await other.send(carol, "still here")
        await received.wait(1)


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
