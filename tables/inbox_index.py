"""What is in the inboxes, without what is written in the messages: for the audit. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from chat_streams.model.position import Position
from tables.inbox import keys
from tables.redis_cluster import Cluster, Command

PAGE: Final = 250
"""The most entries of one look: Redis does nothing else meanwhile."""
LOOKS_AT_ONCE: Final = 200

# A look is atomic: its entries and its cursors are of one moment. Entries are (id, time in s, start of the gap or "").
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
    """An entry, accepted ``at`` (s since the epoch); with ``gap`` it stands for all messages in ``(gap, position]``."""

    position: Position
    at: int
    gap: Position | None


class Cursor(NamedTuple):
    """A device's cursor as Redis has it, and when the device was last seen, in s since the epoch."""

    position: Position
    seen: int


class Sight(NamedTuple):
    """An inbox at one moment; ``fields`` are ``top`` and ``floor``, as far as there are any."""

    fields: dict[str, Position]
    devices: dict[str, Cursor]
    first: Stored | None
    last: Stored | None
    entries: list[Stored]


class InboxIndex:
    """Looks at inboxes."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def look(self, wanted: Sequence[tuple[str, Position, int]]) -> list[Sight]:
        """For each (user, position, count): the inbox, and its first ``count`` entries from that position on.

        At most ``PAGE`` of them. A key that holds something else looks empty. Raises ``RedisUnavailable``.
        """
        found: list[Sight] = []
        for start in range(0, len(wanted), LOOKS_AT_ONCE):
            commands: list[Command] = [
                ("EVAL_RO", _LOOK, 2, *keys(user), str(position), min(count, PAGE))
                for user, position, count in wanted[start : start + LOOKS_AT_ONCE]
            ]
            found += map(_sight, await self._cluster.pipeline(commands))
        return found


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
    # Redis has made sure of the form; what was written by hand may be anything, but must not end the audit.
    entry, _, index = text.partition(b"-")
    return Position(int(entry), int(index or 0))
