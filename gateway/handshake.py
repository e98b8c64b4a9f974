"""The beginning of a connection: its token, the rate of connects, the device's cursor; a refusal is a close code."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any, Final, NamedTuple

import structlog
from aiohttp import WSMsgType, web

from chat_streams.kafka.names import partition_of
from chat_streams.model.codes import Close
from chat_streams.model.errors import ExpiredToken, InvalidToken, KafkaUnavailable, KeysUnavailable, RedisUnavailable
from chat_streams.model.position import Position
from chat_streams.runtime.tokens import Identity
from gateway import protocol
from gateway.protocol import CloseConnection, Hello, InvalidFrame
from gateway.services import Services
from gateway.state.rate_limit import RateLimiter
from tables.acknowledged import REMOVED
from tables.inbox import Device

log = structlog.get_logger()

MAX_HELLO: Final = 64 * 1024
"""Characters of a first frame: nobody is known yet whose rate could be limited."""


class Greeting(NamedTuple):
    """The outcome of a hello: whose connection it is, until when (s since the epoch), from where in the inbox."""

    user: str
    device: str
    number: int
    cursor: Position
    expires: float
    rate_limiter: RateLimiter


def connection_log(user: str, device: str, connection: bytes) -> Any:
    """Return the logger for a line about a connection, with its ids; made for the line, since most never write one."""
    return log.bind(user=user, device=device, connection=connection.hex())


async def shake_hands(services: Services, ws: web.WebSocketResponse, connection: bytes) -> Greeting:
    """Receive the hello and find out who is there; raises ``CloseConnection``, or ``InvalidFrame``."""
    settings = services.settings
    try:
        async with asyncio.timeout(settings.hello_timeout) as limit:
            give_up = partial(_give_up, limit)
            services.hellos.add(give_up)
            try:
                hello = await _receive_hello(ws, settings.max_frame_objects)
            finally:
                services.hellos.remove(give_up)
            identity = await _identify(services, hello)
            limiter = services.rate_limiters.of(identity.user, time.monotonic())
            if wait := limiter.connect(time.monotonic()):
                text = f"too many connections: more than {settings.connect_rate:g} a second, wait {wait:.1f} s"
                raise CloseConnection(Close.TOO_MANY_CONNECTS, text)
            device = await _register(services, identity.user, hello, connection)
    except TimeoutError:
        raise CloseConnection(Close.HELLO_TIMEOUT, f"no hello within {settings.hello_timeout:g} s") from None
    return Greeting(identity.user, hello.device, device.number, device.cursor, identity.expires, limiter)


def welcome(services: Services, greeting: Greeting, connection: bytes) -> bytes:
    """The frame that answers the hello."""
    settings = services.settings
    return protocol.welcome(
        user=greeting.user,
        device=greeting.device,
        connection=connection.hex(),
        after=str(greeting.cursor),
        heartbeat_s=settings.heartbeat,
        window=settings.window,
        max_body_bytes=settings.max_body,
    )


def _give_up(limit: asyncio.Timeout) -> None:
    if not limit.expired():
        limit.reschedule(asyncio.get_running_loop().time())


async def _receive_hello(ws: web.WebSocketResponse, max_objects: int) -> Hello:
    while (message := await ws.receive()).type is WSMsgType.TEXT and protocol.is_blank(message.data):
        pass
    if message.type is not WSMsgType.TEXT:
        raise CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello, as text")
    if len(message.data) > MAX_HELLO:
        raise CloseConnection(Close.BAD_SEQUENCE, f"a hello has at most {MAX_HELLO:,} characters")
    frames = protocol.parse(message.data, max_objects)
    hello = frames[0] if frames else None
    if isinstance(hello, InvalidFrame):
        raise hello
    if not isinstance(hello, Hello) or len(frames) != 1:
        raise CloseConnection(Close.BAD_SEQUENCE, "the first frame must be a hello, alone")
    return hello


async def _identify(services: Services, hello: Hello) -> Identity:
    try:
        return await services.authenticator.identify(hello.token)
    except KeysUnavailable as error:
        raise CloseConnection(Close.KEYS_AWAY, "the keys to check tokens with are away, try again") from error
    except ExpiredToken as error:
        raise CloseConnection(Close.TOKEN_EXPIRED, Close.TOKEN_EXPIRED.meaning) from error
    except InvalidToken as error:
        raise CloseConnection(Close.BAD_TOKEN, f"the token is refused: {error}"[:120]) from error


async def _register(services: Services, user: str, hello: Hello, connection: bytes) -> Device:
    after = Position.parse(hello.after) if hello.after is not None else None
    try:
        device = await services.inbox.hello(user, hello.device, after)
        removed = device.removed
        if after is not None and after > max(device.cursor, device.top):
            # The inbox holds less than the device has seen: it expired, or Redis lost it. The log knows better.
            log_end = await services.log.end(partition_of(user, services.settings.partitions))
            device = await services.inbox.hello(user, hello.device, after, log_end)
            removed += device.removed
    except (RedisUnavailable, KafkaUnavailable) as error:
        connection_log(user, hello.device, connection).warning("hello cannot be answered", error=repr(error))
        raise CloseConnection(Close.STORE_AWAY, "the offline store is away, try again") from error
    REMOVED.inc(removed)
    return device
