"""Rate limits of a user: refusals say when to retry, the client obeys them, and others lose nothing."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from clients.python.client import all_sent
from docker.local.probes import Closed, Raw, Received, eventually, user
from docker.local.temporary_stack import Stack
from gateway.protocol import SUBPROTOCOL

BURST = 20
RATE = 2.0
"""So low that a busy machine has handled a frame before another message is allowed."""
CONNECT_RATE = 0.25
CONNECTIONS = 4


@pytest_asyncio.fixture(scope="module")
async def strict(stack: Stack) -> AsyncIterator[str]:
    """Start a gateway with low limits, and return its URL."""
    running = await stack.start(
        stack.service(
            "gateway",
            send_rate=RATE,
            send_burst=BURST,
            connect_rate=CONNECT_RATE,
            connect_burst=3,
            max_connections=CONNECTIONS,
            origins="https://chat.test,capacitor://localhost",
        )
    )
    yield running.part.url
    stack.forget(running)


async def test_past_the_burst_a_message_is_refused_with_when_to_send_it_again(stack: Stack, strict: str) -> None:
    alice, bob = user("alice"), user("bob")
    async with stack.raw(alice, url=strict) as raw:
        await raw.next_of("caught_up")
        await raw.send(*({"type": "send", "id": f"m{n}", "to": bob, "body": n} for n in range(BURST + 2)))
        answers = [await raw.next() for _ in range(BURST + 2)]
        errors = [answer for answer in answers if answer["type"] == "error"]
        # The message behind it is refused, too, so that the order stays.
        assert [(e["id"], e["code"], e["retry"]) for e in errors] == [
            (f"m{BURST}", "rate_limited", True),
            (f"m{BURST + 1}", "out_of_order", True),
        ]
        assert 0 < errors[0]["retry_in_ms"] <= 1_000 * BURST / RATE
        await stack.wait_stored(bob, BURST)


async def test_the_client_sends_at_the_pace_it_is_told(stack: Stack, strict: str) -> None:
    alice, bob = user("alice"), user("bob")
    received = Received()
    async with stack.connect(bob, received, url=strict), stack.connect(alice, url=strict) as client:
        all_sent(await client.send_many((bob, n) for n in range(BURST + 5)))
        await received.wait(BURST + 5)
    assert received.bodies() == list(range(BURST + 5))


async def test_limits_of_one_user_leave_others_alone(stack: Stack, strict: str) -> None:
    alice, carla, bob = user("alice"), user("carla"), user("bob")
    async with stack.raw(alice, url=strict) as noisy, stack.raw(carla, url=strict) as other:
        await noisy.send(*({"type": "send", "id": f"m{n}", "to": bob, "body": n} for n in range(50)))
        await noisy.next_of("error")
        await other.send({"type": "send", "id": "m", "to": bob, "body": 0})
        assert (await other.next_of("sent"))["id"] == "m"


async def test_too_many_connects_are_told_to_wait(stack: Stack, strict: str) -> None:
    bob = user("bob")

    async def is_refused() -> Closed | None:
        try:
            async with stack.raw(bob, url=strict):
                return None
        except Closed as closed:
            return closed

    assert await is_refused() is None
    # The fourth, unless so much time passes between them that one more is allowed.
    closed = await eventually(is_refused, "a connect is refused")
    assert closed.code == 4012
    assert "wait" in closed.reason
    # The client waits, and connects.
    async with stack.connect(bob, url=strict):
        pass


async def test_a_full_gateway_says_when_to_come_again(stack: Stack, strict: str) -> None:
    """Connections before their hello count, too; the limit of one user is tested in test_hostile.py."""
    async with contextlib.AsyncExitStack() as opened:

        async def overfill() -> None:
            for _ in range(CONNECTIONS + 1):
                await opened.enter_async_context(stack.socket(strict))

        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await overfill()
        assert caught.value.status == 503
        assert caught.value.headers is not None
        assert int(caught.value.headers["Retry-After"]) > 0
        assert caught.value.headers["Connection"] == "close"
    # The client retries, and there is room.
    async with stack.connect(user("late"), url=strict):
        pass


@pytest.mark.parametrize(
    ("origin", "welcome"),
    [
        (None, True),
        ("https://chat.test:443", True),
        ("http://{host}", True),
        ("capacitor://localhost", True),
        ("https://evil.test", False),
        ("https://chat.test.evil.test", False),
        ("null", False),
    ],
)
async def test_a_page_from_elsewhere_is_told_by_a_close_code(
    stack: Stack, strict: str, origin: str | None, welcome: bool
) -> None:
    headers = {} if origin is None else {"Origin": origin.format(host=strict.split("/")[2])}
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(strict, protocols=[SUBPROTOCOL], headers=headers) as ws,
    ):
        raw = Raw(ws)
        if welcome:
            await raw.hello(stack.token(user()))
            return
        closed = await raw.closed()
        assert closed.code == 4504
        assert "origin_refused" in closed.reason
