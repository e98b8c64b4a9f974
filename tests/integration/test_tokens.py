"""Who may connect, and for how long."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import pytest

from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack


def unsigned(claims: dict[str, Any], signature: str = "") -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'none', 'typ': 'JWT'})}.{part(claims)}.{signature}"


def refused(stack: Stack) -> dict[str, str]:
    key, other, now = stack.settings.jwt_key(), "o" * 64, int(time.time())
    good = {"sub": "mallory", "exp": now + 600}
    signature = stack.token("mallory").rpartition(".")[2]
    header, claims, _ = stack.token("mallory").split(".")
    swapped = unsigned({"sub": "bob", "exp": now + 600}).split(".")[1]
    return {
        "of another key": jwt.encode(good, other, "HS256"),
        "expired, of another key": jwt.encode(good | {"exp": now - 10}, other, "HS256"),
        "alg none": unsigned(good),
        "alg none with a signature": unsigned(good, signature),
        "alg NONE": unsigned(good).replace(unsigned(good).split(".")[0], "eyJhbGciOiJOT05FIn0"),
        "HS384": jwt.encode(good, key, "HS384"),
        "without an end": jwt.encode({"sub": "mallory"}, key, "HS256"),
        "without a user": jwt.encode({"exp": now + 600}, key, "HS256"),
        "end is no number": jwt.encode(good | {"exp": "never"}, key, "HS256"),
        "not valid yet": jwt.encode(good | {"nbf": now + 600}, key, "HS256"),
        "user out of the grammar": jwt.encode(good | {"sub": "{u:bob}:inbox"}, key, "HS256"),
        "user is empty": jwt.encode(good | {"sub": ""}, key, "HS256"),
        "claims of another": f"{header}.{swapped}.{signature}",
        "cut": f"{header}.{claims}",
        "empty": "",
        "nonsense": "nonsense",
        "control characters": "a\x00.b\n.c",
    }


async def test_bad_tokens_are_refused_and_say_nothing_of_the_key(stack: Stack) -> None:
    async def refuse(what: str, token: str) -> None:
        async with stack.socket() as raw:
            await raw.send({"type": "hello", "token": token, "device": "phone"})
            closed = await raw.closed()
            assert closed.code == (4401 if what in ("expired", "expired long ago") else 4501), f"{what}: {closed}"
            assert [f["type"] for f in raw.seen] == [], what
            assert stack.settings.jwt_key() not in closed.reason
            assert not token or token not in closed.reason or len(token) < 10

    await asyncio.gather(*(refuse(what, token) for what, token in refused(stack).items()))


@pytest.mark.parametrize("end", [-10, -(10**9), -(10**400)], ids=["10 s ago", "long ago", "before time"])
async def test_an_expired_token_is_to_be_renewed(stack: Stack, end: int) -> None:
    token = jwt.encode({"sub": "mallory", "exp": int(time.time()) + end}, stack.settings.jwt_key(), "HS256")
    async with stack.socket() as raw:
        await raw.send({"type": "hello", "token": token, "device": "phone"})
        assert (await raw.closed()).code == 4401
        assert raw.seen == []


@pytest.mark.parametrize("end", [1e400, [1], {"a": 1}, None, "never"], ids=str)
async def test_a_signed_token_without_a_sensible_end_is_refused(stack: Stack, end: Any) -> None:
    token = jwt.encode({"sub": "mallory", "exp": end}, stack.settings.jwt_key(), "HS256")
    async with stack.socket() as raw:
        await raw.send({"type": "hello", "token": token, "device": "phone"})
        assert (await raw.closed()).code == 4501


async def test_a_connection_ends_with_its_token_and_a_new_one_goes_on(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(3))
    async with stack.socket() as raw:
        # With the leeway, it is long enough to be welcomed by.
        await raw.hello(stack.token(bob, 2))
        assert (await raw.closed()).code == 4401
    await stack.send(alice, bob, [3])
    async with stack.raw(bob) as raw:
        assert [m["body"] for m in await raw.messages(4)] == [0, 1, 2, 3]


async def test_a_client_that_renews_its_token_loses_and_repeats_nothing(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    tokens: list[str] = []

    def renew() -> str:
        tokens.append(stack.token(bob, 2))
        return tokens[-1]

    sent = 0
    async with stack.connect(alice) as sender, stack.connect(bob, received, token=renew) as client:
        await client.wait_caught_up()

        async def goes_on() -> bool:
            nonlocal sent
            await sender.send(bob, sent)
            sent += 1
            return len(tokens) >= 2 and client.caught_up.is_set()

        await eventually(goes_on)
        await received.wait(sent)
    assert received.bodies() == list(range(sent))
