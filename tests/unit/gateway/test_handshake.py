"""The close codes of a handshake; its log names whose connection it is, and holds no token."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from aiohttp import WSMessage, WSMsgType
from structlog.testing import capture_logs

from chat_streams.model.codes import Close
from chat_streams.model.errors import ExpiredToken, InvalidToken, KeysUnavailable, RedisUnavailable
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.tokens import Identity
from gateway import handshake
from gateway.handshake import MAX_HELLO, shake_hands
from gateway.protocol import CloseConnection
from gateway.state.hello_queue import HelloQueue
from gateway.state.rate_limit import RateLimiters, Rates

TOKEN = "a token"
HELLO = f'{{"type":"hello","token":"{TOKEN}","device":"phone"}}'
RATES = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)


class Inbox:
    async def hello(self, *_: Any) -> Any:
        raise RedisUnavailable("redis is away")


class Authenticator:
    async def identify(self, token: str) -> Identity:
        assert token == TOKEN
        return Identity("alice", 2_000_000_000.0)


class Socket:
    def __init__(self, *texts: str) -> None:
        self.texts = [*texts, HELLO]

    async def receive(self) -> WSMessage:
        return WSMessage(WSMsgType.TEXT, self.texts.pop(0), None)


async def test_a_hello_that_redis_does_not_answer_is_logged_with_the_ids_of_its_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Of the configuration there is now: a logger keeps that of its first use.
    monkeypatch.setattr(handshake, "log", structlog.get_logger())
    services: Any = SimpleNamespace(
        hellos=HelloQueue(1),
        settings=Settings(),
        authenticator=Authenticator(),
        inbox=Inbox(),
        rate_limiters=RateLimiters(RATES),
    )
    with capture_logs() as lines, pytest.raises(CloseConnection) as closed:
        await shake_hands(services, Socket(), b"\x01\xab")  # type: ignore[arg-type]
    assert closed.value.code == Close.STORE_AWAY
    assert lines == [
        {
            "event": "hello cannot be answered",
            "log_level": "warning",
            "user": "alice",
            "device": "phone",
            "connection": "01ab",
            "error": "RedisUnavailable('redis is away')",
        }
    ]


async def test_blank_frames_before_a_hello_are_ignored() -> None:
    services: Any = SimpleNamespace(
        hellos=HelloQueue(1),
        settings=Settings(),
        authenticator=Authenticator(),
        inbox=Inbox(),
        rate_limiters=RateLimiters(RATES),
    )
    with pytest.raises(CloseConnection) as closed:
        await shake_hands(services, Socket("", "\n", "\ufeff"), b"\x01")  # type: ignore[arg-type]
    assert closed.value.code == Close.STORE_AWAY
    with pytest.raises(CloseConnection) as closed:
        await shake_hands(services, Socket("[]"), b"\x01")  # type: ignore[arg-type]
    assert closed.value.code == Close.BAD_SEQUENCE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidToken("its audience is none of CHAT_JWT_AUDIENCE (aud)"), Close.BAD_TOKEN),
        (ExpiredToken("it has expired"), Close.TOKEN_EXPIRED),
        (KeysUnavailable("it answers 500"), Close.KEYS_AWAY),
    ],
)
async def test_a_client_stops_for_good_only_where_its_token_is_at_fault(error: Exception, code: Close) -> None:
    async def identify(_: str) -> Identity:
        raise error

    services: Any = SimpleNamespace(
        settings=Settings(), hellos=HelloQueue(1), authenticator=SimpleNamespace(identify=identify)
    )
    with pytest.raises(CloseConnection) as closed:
        await shake_hands(services, Socket(), b"")  # type: ignore[arg-type]
    assert closed.value.code == code
    assert code.reconnect == (code is not Close.BAD_TOKEN)


class Silent:
    async def receive(self) -> WSMessage:
        await asyncio.Event().wait()
        raise AssertionError


async def test_of_too_many_that_are_silent_the_first_is_given_up() -> None:
    services: Any = SimpleNamespace(settings=Settings(), hellos=HelloQueue(2))
    waits = [asyncio.create_task(shake_hands(services, Silent(), b"\x01")) for _ in range(3)]  # type: ignore[arg-type]
    with pytest.raises(CloseConnection) as closed:
        await waits[0]
    assert closed.value.code == Close.HELLO_TIMEOUT
    assert [wait.done() for wait in waits] == [True, False, False]
    for wait in waits:
        wait.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    assert len(services.hellos) == 0


async def test_a_hello_that_is_too_large_is_not_looked_at() -> None:
    services: Any = SimpleNamespace(settings=Settings(), hellos=HelloQueue(1))
    with pytest.raises(CloseConnection, match="65,536") as closed:
        await shake_hands(services, Socket(HELLO.ljust(MAX_HELLO + 1)), b"\x01")  # type: ignore[arg-type]
    assert closed.value.code == Close.BAD_SEQUENCE
