"""The endpoint of a gateway: which pages may connect, and how large a frame may be, on a socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
import pytest
from aiohttp import WSMsgType, web

from chat_streams.model.codes import Close
from chat_streams.model.errors import InvalidToken
from chat_streams.runtime.settings import Settings
from gateway.app import Endpoints, close_afterwards
from gateway.protocol import PATH, SUBPROTOCOL
from gateway.state.hello_queue import HelloQueue

HELLO: Final = json.dumps({"type": "hello", "token": "x", "device": "phone"})


class Authenticator:
    async def identify(self, _: str) -> Any:
        raise InvalidToken("it is none")


@contextlib.asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[str]:
    """Serve the endpoint for connections, where no token is good."""
    services: Any = SimpleNamespace(
        settings=Settings(**settings),
        hub=SimpleNamespace(ready=True),
        hellos=HelloQueue(10),
        authenticator=Authenticator(),
    )
    app = web.Application()
    app.on_response_prepare.append(close_afterwards)
    app.router.add_get(PATH, Endpoints(services).connect)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}{PATH}"
    finally:
        await runner.cleanup()


async def close_code(url: str, text: str, **headers: str) -> int | None:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=[SUBPROTOCOL], headers=headers) as ws,
    ):
        with contextlib.suppress(ConnectionError):
            await ws.send_str(text)
        assert (await ws.receive()).type is WSMsgType.CLOSE
        return ws.close_code


@pytest.mark.parametrize(
    ("origin", "code"),
    [
        ("https://chat.test", Close.BAD_TOKEN),
        ("tauri://localhost", Close.BAD_TOKEN),
        ("https://chat.test:8443", Close.ORIGIN_REFUSED),
        ("https://evil.test/\u00e4" + "x" * 200, Close.ORIGIN_REFUSED),
        ("null", Close.ORIGIN_REFUSED),
    ],
)
async def test_a_page_from_elsewhere_is_told_by_a_close_code(origin: str, code: Close) -> None:
    async with serving(origins="https://chat.test:443,tauri://localhost") as url:
        assert await close_code(url, HELLO, Origin=origin) == code


async def test_a_frame_may_have_as_many_bytes_as_documented() -> None:
    async with serving(max_frame=2_000) as url:
        assert await close_code(url, HELLO.ljust(2_000)) == Close.BAD_TOKEN
        assert await close_code(url, HELLO.ljust(2_001)) == 1009


async def test_connections_that_are_being_opened_count_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = web.WebSocketResponse.prepare

    async def slow(self: web.WebSocketResponse, request: web.BaseRequest) -> Any:
        await asyncio.sleep(0.05)
        return await prepare(self, request)

    monkeypatch.setattr(web.WebSocketResponse, "prepare", slow)
    async with serving(max_connections=2) as url, aiohttp.ClientSession() as session:
        connects = (session.ws_connect(url, protocols=[SUBPROTOCOL]) for _ in range(5))
        found = await asyncio.gather(*connects, return_exceptions=True)
        statuses = [each.status for each in found if isinstance(each, aiohttp.WSServerHandshakeError)]
        assert statuses == [503] * 3
        # An upgrade that fails counts no longer.
        monkeypatch.undo()
        for each in found:
            if isinstance(each, aiohttp.ClientWebSocketResponse):
                await each.close()
        async with session.get(url, headers={"Sec-WebSocket-Protocol": SUBPROTOCOL}) as response:
            assert (response.status, response.headers["Connection"]) == (400, "close")
        assert await close_code(url, HELLO) == Close.BAD_TOKEN
