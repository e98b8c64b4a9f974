"""The live parts of pages: server-sent events with a heartbeat, each panel rendered once for all its viewers."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, NamedTuple

from aiohttp import web

from chat_streams.model.times import now_ms
from chat_streams.runtime.tasks import spawn

LIVE_S: Final = 2.0
"""Seconds between two updates of a panel."""
SHARED_S: Final = 1.0
"""Seconds for which a rendered panel is shared with other viewers."""
HEARTBEAT_S: Final = 10.0
"""Seconds without an event after which a heartbeat is sent."""
MAX_STREAMS: Final = 64
"""The largest number of open live parts, over all viewers."""

Event = tuple[str, str, str]
"""``(id, event, data)``; an empty event is a heartbeat."""


class _Panel(NamedTuple):
    at: float
    text: asyncio.Task[str]


class Live:
    """The open live parts of all viewers, and the panels they share."""

    def __init__(self) -> None:
        self._open = 0
        self._panels: dict[tuple[str, bool, bool], _Panel] = {}

    async def events(self, request: web.Request, source: AsyncIterator[Event]) -> web.StreamResponse:
        """Send events until the source ends, the browser disconnects or its token expires."""
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
                # An empty id would make the browser forget the last one.
                id_line = f"id: {id_}\n" if id_ else ""
                await response.write(f"{id_line}event: {event}\n{lines}\n".encode())
        except ConnectionError:
            pass
        finally:
            self._open -= 1
        return response

    async def panel(self, request: web.Request, make: Callable[[], Coroutine[Any, Any, str]]) -> web.StreamResponse:
        """Send the text that ``make`` returns every ``LIVE_S``, if it has changed."""

        async def panels() -> AsyncIterator[Event]:
            last, sent_at = "", time.monotonic()
            for number in itertools.count(now_ms()):
                text = await self._shared(request, make)
                if text != last:
                    last, sent_at = text, time.monotonic()
                    yield str(number), "panel", text
                elif time.monotonic() - sent_at > HEARTBEAT_S:
                    sent_at = time.monotonic()
                    yield "", "", ""
                await asyncio.sleep(LIVE_S)

        return await self.events(request, panels())

    async def _shared(self, request: web.Request, make: Callable[[], Coroutine[Any, Any, str]]) -> str:
        key = request.path_qs, request["viewer"].operator, request["viewer"].bodies
        now = time.monotonic()
        self._panels = {k: p for k, p in self._panels.items() if now - p.at < SHARED_S or not p.text.done()}
        if key not in self._panels:
            self._panels[key] = _Panel(now, spawn("render a panel", make(), None))
        # A viewer who disconnects must not cancel the rendering for the others.
        return await asyncio.shield(self._panels[key].text)
