"""The removal of function libraries of former versions, which Redis keeps and replicates for ever."""

from __future__ import annotations

from typing import Final, NamedTuple

import structlog

from tables.redis_cluster import Cluster, FormerLibrary

log = structlog.get_logger()

LOOK_SECONDS: Final = 600.0
IDLE_SECONDS: Final = 3600.0
"""The time without a call after which a version counts as gone: a messaging worker calls its functions each second."""
SILENT_SECONDS: Final = 24 * 3600.0
"""The same for versions that count no calls. Longer than an upgrade takes."""


class _Sight(NamedTuple):
    calls: int | None
    since: float


class FormerLibraries:
    """The libraries of other versions, and since when nobody has called their functions.

    A process that comes back to a library that was deleted loads it again.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._looked_at: float | None = None
        self._seen: dict[tuple[str, str], _Sight] = {}

    async def look(self, now: float) -> list[FormerLibrary]:
        """Delete what nobody calls, if it is time to look again; returns it. Raises ``RedisUnavailable``.

        ``now`` is in seconds of a monotonic clock.
        """
        if self._looked_at is not None and now - self._looked_at < LOOK_SECONDS:
            return []
        self._looked_at = now
        found = {(library.server, library.name): library for library in await self._cluster.former_libraries()}
        before, self._seen = self._seen, {}
        deleted = []
        for key, library in found.items():
            sight = before.get(key)
            if sight is None or sight.calls != library.calls:
                sight = _Sight(library.calls, now)
            self._seen[key] = sight
            if now - sight.since >= (SILENT_SECONDS if library.calls is None else IDLE_SECONDS):
                await self._cluster.delete_library(library)
                log.info("a function library that nobody calls is deleted", server=library.server, library=library.name)
                del self._seen[key]
                deleted.append(library)
        return deleted
