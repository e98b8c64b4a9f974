"""The keys behind a JWKS URL: fetched in the background, so that only tokens with an unknown key wait for a fetch."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
import jwt
import structlog
from prometheus_client import Counter, Gauge

from chat_streams.model.errors import KeysUnavailable
from chat_streams.runtime.key_set import KeySet, parse
from chat_streams.runtime.metrics import REGISTRY

log = structlog.get_logger()

FETCH_S: Final = 5.0
"""Seconds that a fetch may take in all."""
WAIT_S: Final = 5.0
"""Seconds that a token with an unknown key waits for fetches."""
MAX_ANSWER: Final = 256 * 1024
CHUNK: Final = 16 * 1024

AGE: Final = Gauge(
    "connect_chat_jwks_age_seconds",
    "Since the keys in use were fetched from CHAT_JWKS_URL; 0 without that.",
    registry=REGISTRY,
)
FETCHES: Final = Counter(
    "connect_chat_jwks_fetches_total", "Fetches of CHAT_JWKS_URL, by what came of them.", ["result"], registry=REGISTRY
)
SUCCEEDED: Final = FETCHES.labels("succeeded")
FAILED: Final = FETCHES.labels("failed")

Fetch = Callable[[str], Awaitable[bytes]]
"""A function that returns what a URL answers, or raises ``KeysUnavailable``."""

# The loop's clock.
_now: Final = time.monotonic


async def fetch(url: str) -> bytes:
    """Return what a URL answers; raises ``KeysUnavailable`` for all but a 200 of bounded size in bounded time."""
    headers = {
        "Accept": "application/jwk-set+json, application/json",
        # A small text may unpack to a large one.
        "Accept-Encoding": "identity",
        # A cache on the way would answer with the set that does not have the new key yet.
        "Cache-Control": "no-cache",
    }
    try:
        # A session for each fetch: one in five minutes, and none that is left open.
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=FETCH_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=True,
            ) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            if response.status != 200:
                # Whoever can redirect could have keys of their own taken, from wherever this process reaches.
                to = " with a redirect, which is not followed" if 300 <= response.status < 400 else ""
                raise KeysUnavailable(f"it answers {response.status}{to}")
            body = b""
            async for chunk in response.content.iter_chunked(CHUNK):
                body += chunk
                if len(body) > MAX_ANSWER:
                    raise KeysUnavailable(f"the answer is above {MAX_ANSWER} bytes")
            return body
    except TimeoutError as error:
        raise KeysUnavailable(f"no whole answer within {FETCH_S:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise KeysUnavailable(f"{type(error).__name__}: {error}"[:300]) from error


class RemoteKeys:
    """The keys behind a URL, as long as ``run`` runs."""

    def __init__(self, url: str, fetch: Fetch = fetch) -> None:
        self._url = url
        self._fetch = fetch
        self._set = KeySet(_now())
        self._wanted = asyncio.Event()
        # Set at the end of a fetch, and then replaced.
        self._fetched = asyncio.Event()
        self._stopped = False
        AGE.set_function(lambda: self._set.age(_now()))

    @property
    def are_current(self) -> bool:
        """True while there are keys to check tokens with."""
        return self._set.are_current(_now())

    async def find(self, key_id: str, algorithm: str) -> tuple[jwt.PyJWK, ...]:
        """Return the keys of an id, at once if it is known, else after a fetch.

        Raises ``InvalidToken`` where there is no such key, and ``KeysUnavailable`` where that cannot be found out now.
        """
        asked = _now()
        try:
            async with asyncio.timeout(WAIT_S):
                while (found := self._set.find(key_id, algorithm, asked, _now())) is None:
                    if self._stopped:
                        raise KeysUnavailable("the process stops")
                    self._wanted.set()
                    await self._fetched.wait()
        except TimeoutError as error:
            raise KeysUnavailable(f"no keys within {WAIT_S:g} s") from error
        return found

    async def run(self) -> None:
        """Fetch the keys whenever that is due, until this task is cancelled; then nobody waits for one any longer."""
        try:
            while True:
                await self._wait_until_due()
                await self._renew()
                self._wake_all()
        finally:
            self._stopped = True
            self._wake_all()

    def _wake_all(self) -> None:
        self._fetched.set()
        self._fetched = asyncio.Event()

    async def _wait_until_due(self) -> None:
        while (delay := self._set.due - _now()) > 0:
            self._wanted.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wanted.wait()

    async def _renew(self) -> None:
        before = self._set.ids
        self._set.begin(_now())
        try:
            self._set.succeed(parse(await self._fetch(self._url)))
        except Exception as error:  # noqa: BLE001 - whatever an answer does to us, the next one may be good
            self._set.fail(_now(), random.uniform(0.5, 1.0))
            FAILED.inc()
            log.warning(
                "the keys for tokens cannot be fetched",
                error=str(error) if isinstance(error, KeysUnavailable) else repr(error),
                setting="CHAT_JWKS_URL",
                age_s=round(self._set.age(_now())),
                retry_in_s=round(self._set.due - _now(), 1),
            )
            return
        SUCCEEDED.inc()
        if not self._set.ids:
            log.error("there is no key for tokens: nobody can connect", setting="CHAT_JWKS_URL")
        elif self._set.ids != before:
            log.info("the keys for tokens are others", ids=self._set.ids)
