"""A bound of the bytes under way that were read and are not written yet: who wants to read more waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Room:
    """The bytes under way, which may pass ``limit`` by what one reader takes at once."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def held(self) -> int:
        """Bytes under way."""
        return self._held

    async def wait(self) -> None:
        """Wait until fewer bytes than the limit are under way."""
        await self._has_room.wait()

    def take(self, size: int) -> Callable[[object], None]:
        """Count bytes as under way; returns what gives them back, which takes any argument, as of a callback."""
        self._add(size)
        return lambda _: self._add(-size)

    def _add(self, size: int) -> None:
        self._held += size
        if self._held < self._limit:
            self._has_room.set()
        else:
            self._has_room.clear()
