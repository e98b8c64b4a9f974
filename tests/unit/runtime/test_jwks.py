"""The fetcher against a real server on loopback, which answers whatever a test wants."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from chat_streams.model.errors import InvalidToken, KeysUnavailable
from chat_streams.runtime import jwks
from chat_streams.runtime.jwks import MAX_ANSWER, RemoteKeys, fetch
from chat_streams.runtime.metrics import REGISTRY

EC = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def key_set(*ids: str) -> bytes:
    return json.dumps({"keys": [EC | {"kid": name} for name in ids]}).encode()


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """A server with that answer at its one path; returns its URL."""
    app = web.Application()
    app.router.add_get("/jwks", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/jwks"
    finally:
        await runner.cleanup()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks, "FETCH_S", 0.1)
    monkeypatch.setattr(jwks, "WAIT_S", 0.1)


async def html(_: web.Request) -> web.Response:
    return web.Response(text="<html>maintenance</html>", content_type="text/html")


async def error(_: web.Request) -> web.Response:
    return web.Response(status=500, body=key_set("1"))


async def redirect(request: web.Request) -> web.Response:
    if "there" in request.query:
        return web.Response(body=key_set("1"))
    return web.Response(status=302, headers={"Location": "/jwks?there"}, body=key_set("1"))


async def large(_: web.Request) -> web.Response:
    return web.Response(body=key_set("1") + b" " * MAX_ANSWER)


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def packed(_: web.Request) -> web.Response:
    body = gzip.compress(key_set("1") + b" " * 100_000)
    return web.Response(body=body, headers={"Content-Encoding": "gzip"})


async def slow(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.02)


async def hanging(_: web.Request) -> web.Response:
    await asyncio.sleep(3600)
    raise AssertionError("nobody waits so long")


async def cut(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(key_set("1"))
    assert request.transport is not None
    request.transport.close()
    return response


ILL: list[tuple[Answer, str]] = [
    (html, "no JSON"),
    (error, "it answers 500"),
    (redirect, "it answers 302 with a redirect"),
    (large, "above 262144 bytes"),
    (endless, "above 262144 bytes"),
    (packed, "no JSON"),
    (slow, "within 0.1 s"),
    (hanging, "within 0.1 s"),
    (cut, "Error"),
]


@asynccontextmanager
async def keys(url: str, fetch: jwks.Fetch = fetch) -> AsyncIterator[RemoteKeys]:
    found = RemoteKeys(url, fetch)
    running = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_key_is_there_once_the_first_fetch_has_brought_it() -> None:
    seen: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers["Cache-Control"])
        return web.Response(body=key_set("1"), content_type="text/plain")

    async with server(answer) as url, keys(url) as found:
        assert len(await found.find("1", "ES256")) == 1
        assert found.are_current
        for _ in range(100):
            await found.find("1", "ES256")
    assert seen == ["no-cache"]


@pytest.mark.parametrize(("answer", "why"), ILL, ids=[answer.__name__ for answer, _ in ILL])
@pytest.mark.usefixtures("soon")
async def test_an_ill_answer_is_a_reason_to_try_again(answer: Answer, why: str) -> None:
    with capture_logs() as lines:
        async with server(answer) as url, keys(url) as found:
            with pytest.raises(KeysUnavailable):
                await found.find("1", "ES256")
            while not lines:
                await asyncio.sleep(0)
            assert not found.are_current
    assert why in lines[0]["error"]
    assert lines[0]["setting"] == "CHAT_JWKS_URL"


async def test_an_address_where_nobody_listens_is_a_reason_to_try_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with keys(f"http://127.0.0.1:{port}/jwks") as found:
        with pytest.raises(KeysUnavailable):
            await found.find("1", "ES256")


@pytest.mark.usefixtures("soon")
async def test_known_keys_wait_for_no_fetch_and_a_stop_waits_for_none() -> None:
    hang = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        return await hanging(request) if hang.is_set() else web.Response(body=key_set("1"))

    async with server(answer) as url, keys(url) as found:
        await found.find("1", "ES256")
        hang.set()
        unknown = asyncio.create_task(found.find("2", "ES256"))
        for _ in range(5):
            await asyncio.sleep(0)
        # It comes at once, without a turn of the loop.
        known = found.find("1", "ES256")
        with pytest.raises(StopIteration):
            known.send(None)
        assert not unknown.done()
    # The end of ``run`` lets go whoever waits.
    with pytest.raises(KeysUnavailable, match="stops"):
        await unknown
    with pytest.raises(KeysUnavailable):
        await found.find("3", "ES256")


async def test_an_unknown_key_is_fetched_at_once_by_one_request_for_all_who_wait() -> None:
    answers = [key_set("1"), key_set("1", "2")]
    requests = 0

    async def answer(_: web.Request) -> web.Response:
        nonlocal requests
        requests += 1
        return web.Response(body=answers[min(requests, len(answers)) - 1])

    async with server(answer) as url, keys(url) as found:
        await found.find("1", "ES256")
        assert requests == 1
        done = await asyncio.gather(*(found.find("2", "ES256") for _ in range(100)))
        assert (len(done), requests) == (100, 2)
        refused = await asyncio.gather(*(found.find(f"no-{n}", "ES256") for n in range(100)), return_exceptions=True)
        assert {type(error) for error in refused} == {InvalidToken}
        assert requests == 3


async def test_unknown_keys_cannot_make_more_than_ten_fetches_a_minute() -> None:
    requests = 0

    async def count(_: str) -> bytes:
        nonlocal requests
        requests += 1
        return key_set("1")

    async with keys("http://127.0.0.1/", count) as found:
        await found.find("1", "ES256")
        kinds = []
        for n in range(50):
            with pytest.raises((InvalidToken, KeysUnavailable)) as refused:
                await found.find(f"no-{n}", "ES256")
            kinds.append(refused.type)
        assert len(await found.find("1", "ES256")) == 1
    assert kinds == [InvalidToken] * 10 + [KeysUnavailable] * 40
    assert requests == 11


async def test_no_fault_of_a_fetch_ends_the_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: 0.001)
    faults: list[Any] = [RuntimeError("a fault"), MemoryError(), RecursionError(), KeysUnavailable("away"), b"\xff"]

    async def faulty(_: str) -> bytes:
        if not faults:
            return key_set("1")
        if isinstance(fault := faults.pop(0), bytes):
            return fault
        raise fault

    with capture_logs() as lines:
        async with keys("http://127.0.0.1/", faulty) as found:
            while not found.are_current:
                await asyncio.sleep(0.001)
            assert len(await found.find("1", "ES256")) == 1
    assert [line["log_level"] for line in lines] == ["warning"] * 5 + ["info"]
    assert lines[-1]["ids"] == ["1"]


async def test_the_age_of_the_keys_and_the_fetches_are_shown() -> None:
    def shown(name: str) -> float:
        text = generate_latest(REGISTRY).decode()
        (line,) = (line for line in text.splitlines() if line.startswith(name))
        return float(line.rpartition(" ")[2])

    succeeded, failed = (
        'connect_chat_jwks_fetches_total{result="succeeded"}',
        'connect_chat_jwks_fetches_total{result="failed"}',
    )
    before = shown(succeeded), shown(failed)

    async def good(_: str) -> bytes:
        return key_set("1")

    async with keys("http://127.0.0.1/", good) as found:
        await found.find("1", "ES256")
        assert 0 <= shown("connect_chat_jwks_age_seconds") < 60
    assert (shown(succeeded), shown(failed)) == (before[0] + 1, before[1])
