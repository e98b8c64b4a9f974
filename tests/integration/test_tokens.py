"""Tokens: the users they admit, and how long a connection lasts."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from docker.local.probes import Received, eventually, user
from docker.local.temporary_stack import Stack

LEEWAY_S = 30


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
        "expired, of another key": jwt.encode(good | {"exp": now - 100}, other, "HS256"),
        "alg none": unsigned(good),
        "alg none with a signature": unsigned(good, signature),
        "alg NONE": unsigned(good).replace(unsigned(good).split(".")[0], "eyJhbGciOiJOT05FIn0"),
        "HS384": jwt.encode(good, key, "HS384"),
        "without an end": jwt.encode({"sub": "mallory"}, key, "HS256"),
        "without a user": jwt.encode({"exp": now + 600}, key, "HS256"),
        "end is no number": jwt.encode(good | {"exp": "never"}, key, "HS256"),
        "end is true": jwt.encode(good | {"exp": True}, key, "HS256"),
        "end in ms": jwt.encode(good | {"exp": (now + 600) * 1000}, key, "HS256"),
        "for an audience": jwt.encode(good | {"aud": "chat"}, key, "HS256"),
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


@pytest.mark.parametrize("end", [-100, -(10**9), -(10**400)], ids=["100 s ago", "long ago", "before time"])
async def test_an_expired_token_is_to_be_renewed(stack: Stack, end: int) -> None:
    token = jwt.encode({"sub": "mallory", "exp": int(time.time()) + end}, stack.settings.jwt_key(), "HS256")
    async with stack.socket() as raw:
        await raw.send({"type": "hello", "token": token, "device": "phone"})
        assert (await raw.closed()).code == 4401
        assert raw.seen == []


@pytest.mark.parametrize(
    "end", [1e400, 10**400, float("nan"), [1], {"a": 1}, None, "never"], ids=lambda end: str(end)[:20]
)
async def test_a_signed_token_without_a_sensible_end_is_refused(stack: Stack, end: Any) -> None:
    token = jwt.encode({"sub": "mallory", "exp": end}, stack.settings.jwt_key(), "HS256")
    async with stack.socket() as raw:
        await raw.send({"type": "hello", "token": token, "device": "phone"})
        assert (await raw.closed()).code == 4501


async def test_a_connection_ends_with_its_token_and_a_new_one_goes_on(stack: Stack) -> None:
    alice, bob = user("alice"), user("bob")
    await stack.send(alice, bob, range(3))
    async with stack.socket() as raw:
        # With the leeway, its time is long enough for a welcome.
        await raw.hello(stack.token(bob, 2 - LEEWAY_S))
        assert (await raw.closed()).code == 4401
    await stack.send(alice, bob, [3])
    async with stack.raw(bob) as raw:
        assert [m["body"] for m in await raw.messages(4)] == [0, 1, 2, 3]


async def test_a_client_that_renews_its_token_loses_and_repeats_nothing(stack: Stack) -> None:
    alice, bob, received = user("alice"), user("bob"), Received()
    tokens: list[str] = []

    def renew() -> str:
        tokens.append(stack.token(bob, 2 - LEEWAY_S))
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


class Provider:
    """An identity provider: its keys, and whether it answers at all."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.answers = asyncio.Event()
        self.answers.set()
        self.requests = 0
        app = web.Application()
        app.router.add_get("/jwks", self._answer)
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)

    async def _answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        await self.answers.wait()
        to_jwk = jwt.algorithms.ECAlgorithm.to_jwk
        keys = [to_jwk(key.public_key(), as_dict=True) | {"kid": name} for name, key in self.keys.items()]
        return web.json_response({"keys": keys})

    def add(self, name: str) -> None:
        self.keys[name] = ec.generate_private_key(ec.SECP256R1())

    def token(self, key: str, **claims: Any) -> str:
        good = {"sub": user("alice"), "exp": time.time() + 600, "aud": ["chat"], "iss": "https://id.example"}
        return jwt.encode(good | claims, self.keys[key], "ES256", headers={"kid": key})


async def test_keys_of_a_provider_are_renewed_and_hold_up_nobody_while_it_hangs(stack: Stack) -> None:
    provider = Provider()
    provider.add("1")
    await provider.runner.setup()
    await web.TCPSite(provider.runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{provider.runner.addresses[0][1]}/jwks"
    gateway = await stack.start(
        stack.service("gateway", jwks_url=url, jwt_audience="chat,web", jwt_issuer="https://id.example")
    )

    async def code(token: str) -> int:
        async with stack.socket(gateway.part.url) as raw:
            await raw.send({"type": "hello", "token": token, "device": "phone"})
            return (await raw.closed()).code

    async def welcome(token: str) -> None:
        async with stack.socket(gateway.part.url) as raw:
            await raw.hello(token)

    await welcome(provider.token("1"))
    assert await code(provider.token("1", aud="other")) == 4501
    assert await code(provider.token("1", iss="https://id.test")) == 4501
    assert provider.requests == 1
    provider.add("2")
    await asyncio.gather(*(welcome(provider.token("2")) for _ in range(10)))
    assert provider.requests == 2
    assert await code(jwt.encode({"sub": "eve"}, provider.keys["1"], "ES256", headers={"kid": "3"})) == 4501
    provider.answers.clear()
    provider.add("4")
    async with stack.socket(gateway.part.url) as silent, stack.socket(gateway.part.url) as unknown:
        await unknown.send({"type": "hello", "token": provider.token("4"), "device": "phone"})
        await eventually(lambda: provider.requests == 4)
        await welcome(provider.token("1"))
        gateway.process.terminate()
        # Neither waits for its hello, for 10 minutes here, nor for the provider.
        assert (await unknown.closed()).code == 4000
        assert (await silent.closed()).code == 4000
        await eventually(lambda: not gateway.alive)
    del stack.running[gateway.part.name]
    assert gateway.process.returncode == 0
    await provider.runner.cleanup()
