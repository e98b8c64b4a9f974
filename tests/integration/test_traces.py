"""A sampled message leaves one trace, from the sender's frame to the recipient's acknowledgement."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from clients.python.client import Sent
from docker.local.probes import Received, eventually, user
from docker.local.span_collector import Taken
from docker.local.temporary_stack import Stack

SECRET = "between you and me"
WAY = {"send": "", "append": "send", "forward": "append", "acknowledge": "forward", "history": "send"}


def parents(spans: list[Taken]) -> dict[str, str]:
    """Return the name of the span before each one, by name."""
    names = {span.id: span.name for span in spans}
    return {span.name: names[span.parent] if span.parent else "" for span in spans}


@pytest_asyncio.fixture
async def traced(stack: Stack, tmp_path: Path) -> AsyncIterator[Stack]:
    """A stack whose services send spans: the SDK and its exporter take a second to import."""
    async with Stack(tmp_path, traced=True) as other:
        yield other


@pytest.mark.long
async def test_one_trace_of_a_message_across_the_services(traced: Stack) -> None:
    stack = traced
    gateway = stack.service("gateway", trace_sample=1)
    running = await stack.start(gateway)
    alice, bob, received = user("alice"), user("bob"), Received()
    async with (
        stack.connect(alice, url=gateway.url) as sender,
        stack.connect(bob, received, url=gateway.url) as client,
    ):
        await client.wait_caught_up()
        sent = [await sender.send(bob, {"text": SECRET}) for _ in range(2)]
        await received.wait(2)
        await stack.wait_stored(bob, 0)

    def traces(of: list[Sent]) -> list[list[Taken]]:
        roots = [s for s in stack.collector.spans if s.attributes.get("chat.message") in {one.id for one in of}]
        found = [[s for s in stack.collector.spans if s.trace == trace] for trace in {root.trace for root in roots}]
        return found if [len(spans) for spans in found] == [5] * len(of) else []

    for spans in await eventually(lambda: traces(sent), what="two traces of 5 spans"):
        assert parents(spans) == WAY
        by_name = {span.name: span for span in spans}
        assert {name: span.service.removeprefix("connect-chat-") for name, span in by_name.items()} == {
            "send": "gateway",
            "append": "messaging",
            "forward": "gateway",
            "acknowledge": "gateway",
            "history": "history",
        }
        send, append, acknowledge = by_name["send"], by_name["append"], by_name["acknowledge"]
        assert (send.attributes["chat.sender"], send.attributes["chat.to"]) == (alice, bob)
        assert append.attributes["chat.position"] in {message.pos for message in received.messages}
        assert acknowledge.attributes["chat.device"] == "phone"
        assert send.start <= append.start <= append.end <= by_name["forward"].start <= acknowledge.end
    assert not any(SECRET.encode() in body for body in stack.collector.bodies)
    # Who was away: what waits in the inbox keeps its place in its trace.
    carol, later = user("carol"), Received()
    async with stack.connect(alice, url=gateway.url) as sender:
        waiting = [await sender.send(carol, {"text": SECRET}) for _ in range(3)]
        await stack.wait_stored(carol, 3)
    async with stack.connect(carol, later, url=gateway.url) as client:
        await client.wait_caught_up()
        await stack.wait_stored(carol, 0)
    for spans in await eventually(lambda: traces(waiting), what="three traces of 5 spans"):
        assert parents(spans) == WAY
    # A gateway that samples nothing asks for nothing to be traced.
    before = len(stack.collector.spans)
    async with stack.connect(bob, received) as client:
        await client.wait_caught_up()
        await stack.send(alice, bob, ["not sampled"])
        await received.wait(3)
        await stack.wait_stored(bob, 0)
    stack.forget(running)
    assert not [s for s in stack.collector.spans[before:] if s.attributes.get("chat.to") == bob]
