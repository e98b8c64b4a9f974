"""The live parts of pages: server-sent events with a heartbeat, each panel made once for all who look at the same."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, NamedTuple

from aiohttp import web

from chat_streams.model.times import now_ms

LIVE_S: Final = 2.0
SHARED_S: Final = 1.0
"""A panel so young is not made anew for another viewer."""
HEARTBEAT_S: Final = 10.0
MAX_STREAMS: Final = 64
"""Live parts at once, over all viewers."""

Event = tuple[str, str, str]
"""``(id, event, data)``; an empty event is a heartbeat."""


class _Panel(NamedTuple):
    at: float
    text: asyncio.Task[str]


class Live:
    """All live parts that are open."""

    def __init__(self) -> None:
        self._open = 0
        self._panels: dict[tuple[str, bool, bool], _Panel] = {}

    async def events(self, request: web.Request, source: AsyncIterator[Event]) -> web.StreamResponse:
        """Send events for as long as there are any, the browser is there, and its token is good."""
        if self._open >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_STREAMS} live parts are open already", headers={"Retry-After": "5"}
            )
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        self._open += 1
        try:
            await response.prepare(request)
            await response.write(b"retry: 1500\n\n")
            async for id_, event, data in source:
                if time.time() > request["viewer"].expires:
                    break
                if not event:
                    await response.write(b": heartbeat\n\n")
                    continue
                lines = "".join(f"data: {line}\n" for line in data.splitlines() or [""])
                # An empty id would have the browser forget where it was.
                place = f"id: {id_}\n" if id_ else ""
                await response.write(f"{place}event: {event}\n{lines}\n".encode())
        except ConnectionError:
            pass
        finally:
            self._open -= 1
        return response

    async def panel(self, request: web.Request, make: Callable[[], Awaitable[str]]) -> web.StreamResponse:
        """Send what ``make`` makes every ``LIVE_S``, where it has changed."""

        async def panels() -> AsyncIterator[Event]:
            last, said = "", time.monotonic()
            for number in itertools.count(now_ms()):
                text = await self._shared(request, make)
                if text != last:
                    last, said = text, time.monotonic()
                    yield str(number), "panel", text
                elif time.monotonic() - said > HEARTBEAT_S:
                    said = time.monotonic()
                    yield "", "", ""
                await asyncio.sleep(LIVE_S)

        return await self.events(request, panels())

    async def _shared(self, request: web.Request, make: Callable[[], Awaitable[str]]) -> str:
        key = request.path_qs, request["viewer"].operator, request["viewer"].bodies
        now = time.monotonic()
        self._panels = {k: p for k, p in self._panels.items() if now - p.at < SHARED_S or not p.text.done()}
        if key not in self._panels:
            self._panels[key] = _Panel(now, asyncio.ensure_future(make()))
        # Who leaves does not take it from the others.
        return await asyncio.shield(self._panels[key].text)
