"""A summary of one inbox for operators: its size, the senders, and the cursor of each device. Only reads."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Final, NamedTuple

from redis.exceptions import ResponseError

from tables.inbox import keys
from tables.redis_cluster import Cluster

PAGE: Final = 200
"""The number of entries read at once; Redis does nothing else meanwhile."""
LOOKS: Final = 5
"""The largest number of reads, so that the senders of at most 1,000 messages are counted."""

_LOOK: Final = """
return {
  redis.call('HGETALL', KEYS[2]),
  redis.call('XLEN', KEYS[1]),
  redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[2]),
  redis.call('PTTL', KEYS[1]),
}
"""


class InboxView(NamedTuple):
    """A summary of an inbox: ``size`` in bytes, times in s since the epoch, positions as texts.

    ``senders`` has the 20 most frequent senders of the oldest ``looked_at`` messages. ``gaps`` counts the entries among
    them that stand for messages which went to history only.
    """

    known: bool
    messages: int
    size: int
    oldest_at: int | None
    oldest: str | None
    top: str | None
    floor: str | None
    devices: dict[str, dict[str, Any]]
    senders: dict[str, int]
    looked_at: int
    gaps: int


NOTHING: Final = InboxView(False, 0, 0, None, None, None, None, {}, {}, 0, 0)


async def look(cluster: Cluster, user: str) -> InboxView:
    """Read the inbox of a user; ``known`` is false for a user who never connected and never got a message.

    Raises ``RedisUnavailable``.
    """
    senders: Counter[str] = Counter()
    looked_at = gaps = 0
    start, first_entry, answer = "-", None, None
    for _ in range(LOOKS):
        (answer,) = await cluster.each([("EVAL_RO", _LOOK, 2, *keys(user), start, PAGE)])
        if isinstance(answer, ResponseError):
            break
        for id_, fields in answer[2]:
            first_entry = first_entry or (id_.decode(), int(fields[1]))
            if fields[4] == b"m":
                looked_at += 1
                senders[_sender(fields[5])] += 1
            else:
                gaps += 1
        if len(answer[2]) < PAGE:
            break
        start = "(" + answer[2][-1][0].decode()
    if answer is None or isinstance(answer, ResponseError):
        return NOTHING
    pairs = iter(answer[0])
    fields = {name.decode(errors="replace"): value.decode(errors="replace") for name, value in zip(pairs, pairs)}  # noqa: B905
    devices = {}
    for name, value in fields.items():
        if name.startswith("d:"):
            cursor, seen, number = (value.split(" ") + ["0", "0"])[:3]
            devices[name[2:]] = {"cursor": cursor, "seen": int(seen), "number": int(number)}
    size = int(fields.get("bytes", 0)) - int(fields.get("removed", 0)) if answer[1] else 0
    return InboxView(
        bool(fields) or answer[1] > 0,
        answer[1],
        max(0, size),
        first_entry[1] if first_entry else None,
        first_entry[0] if first_entry else None,
        fields.get("top"),
        fields.get("floor"),
        devices,
        dict(senders.most_common(20)),
        looked_at,
        gaps,
    )


def _sender(json_: bytes) -> str:
    try:
        return str(json.loads(json_)["from"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "?"
