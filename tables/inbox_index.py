"""The contents of inboxes without the messages' bodies, and whose inboxes there are. Only reads."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, Literal, NamedTuple

from redis.exceptions import ResponseError

from chat_streams.model.position import Position
from tables.inbox import keys
from tables.redis_cluster import Cluster, Command

PAGE: Final = 250
"""The largest number of entries read from one inbox at once; Redis does nothing else meanwhile."""
LOOKS_AT_ONCE: Final = 200
"""The largest number of inboxes read in one round trip."""

# The script is atomic: entries and cursors are of one moment. Entries are (id, time in s, start of the gap or "").
_LOOK: Final = """
local function short(entries)
  local found = {}
  for i, entry in ipairs(entries or {}) do
    local value = entry[2]
    found[i] = {entry[1], value[2] or '0', value[5] == 'g' and value[6] or ''}
  end
  return found
end
return {
  redis.call('HGETALL', KEYS[2]),
  short(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)),
  short(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)),
  short(redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2])),
}
"""


class Stored(NamedTuple):
    """An entry, accepted ``at`` (s since the epoch); with ``gap``, all of ``(gap, position]`` went to history only."""

    position: Position
    at: int
    gap: Position | None


class Cursor(NamedTuple):
    """A device's cursor in Redis, and the time at which the device was last seen (s since the epoch)."""

    position: Position
    seen: int


class Sight(NamedTuple):
    """An inbox at one moment; ``fields`` has ``top`` and ``floor``, if set; ``entries`` are those requested."""

    fields: dict[str, Position]
    devices: dict[str, Cursor]
    first: Stored | None
    last: Stored | None
    entries: list[Stored]


class InboxIndex:
    """A reader of inboxes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def look(self, wanted: Sequence[tuple[str, Position, int]]) -> list[Sight]:
        """Read the inbox of each (user, position, count), with its first ``count`` entries from that position on.

        ``count`` is capped at ``PAGE``. Keys of another type read as an empty inbox. Raises ``RedisUnavailable``.
        """
        found: list[Sight] = []
        for start in range(0, len(wanted), LOOKS_AT_ONCE):
            commands: list[Command] = [
                ("EVAL_RO", _LOOK, 2, *keys(user), str(position), min(count, PAGE))
                for user, position, count in wanted[start : start + LOOKS_AT_ONCE]
            ]
            found += map(_sight, await self._cluster.each(commands))
        return found

    async def users(self, key: Literal["inbox", "devices"]) -> AsyncGenerator[list[str], None]:
        """Yield the users who have this key, some at a time, and some perhaps more than once.

        All who have messages or devices have ``devices``. Raises ``RedisUnavailable``.
        """
        prefix, suffix = b"{u:", b"}:" + key.encode()
        async with contextlib.aclosing(self._cluster.scan(f"{{u:*}}:{key}")) as pages:
            async for page in pages:
                yield [name.decode() for name in (k[len(prefix) : -len(suffix)] for k in page) if name.isascii()]


def _sight(answer: Any) -> Sight:
    if isinstance(answer, ResponseError):
        return Sight({}, {}, None, None, [])
    pairs = iter(answer[0])
    fields, devices = {}, {}
    for name, value in zip(pairs, pairs, strict=True):
        if name.startswith(b"d:"):
            position, _, rest = value.partition(b" ")
            devices[name[2:].decode()] = Cursor(_position(position), int(rest.partition(b" ")[0] or 0))
        elif name in (b"top", b"floor"):
            fields[name.decode()] = _position(value)
    first, last = (next(iter(_stored(entries)), None) for entries in answer[1:3])
    return Sight(fields, devices, first, last, _stored(answer[3]))


def _stored(entries: list[Any]) -> list[Stored]:
    return [Stored(_position(id_), int(at), _position(gap) if gap else None) for id_, at, gap in entries]


def _position(text: bytes) -> Position:
    # Redis guarantees the form of entry ids; a value that was written by hand may be anything.
    entry, _, index = text.partition(b"-")
    return Position(int(entry), int(index or 0))
