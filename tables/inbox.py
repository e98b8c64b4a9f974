"""The offline message store: one Redis Stream per user, addressed by positions in the log (see ``lua/inbox.lua``)."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from redis.exceptions import ResponseError

from chat_streams.model.errors import FencingTokenStale, RedisUnavailable
from chat_streams.model.position import ORIGIN, Position
from chat_streams.model.records import Message
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.spans import EXPECTED
from tables.functions import function
from tables.redis_cluster import Cluster, Command

RESTORE_AT_ONCE = 500
MAX_DIGESTS = 50_000
"""Of one user and retry window; past it the window is shortened."""


APPEND_AT_ONCE = 500
"""Messages of one part of an append."""


class Device(NamedTuple):
    """What the inbox knows of a device at hello: its cursor, and the user's ``top`` and ``floor``.

    ``removed`` messages left the inbox because all devices have them now.
    """

    cursor: Position
    number: int
    top: Position
    floor: Position
    removed: int


class LoggedDevice(NamedTuple):
    """What the log says of a device: its cursor, when it was last heard of (s), its latest connection's number."""

    cursor: Position
    seen: int
    number: int


@dataclass(frozen=True)
class InboxPage:
    """All of the inbox in ``(after, until]``: ``count`` JSON objects joined by commas.

    With ``missed``, what was in that range left the inbox without acknowledgement.
    """

    after: Position
    until: Position
    first: Position | None
    count: int
    messages: bytes
    missed: bool


class Batch(NamedTuple):
    """Messages for one recipient from one partition of the log, accepted within one retry window, in order."""

    user: str
    partition: int
    messages: Sequence[tuple[Position, Message]]


class Appended(NamedTuple):
    """The outcome of a batch: the inbox now holds ``(former, until]`` with these new JSON objects in it.

    ``positions`` are theirs. ``overflow`` messages in that range went to history only, ``retries`` were there already.
    """

    former: Position
    until: Position
    positions: list[Position]
    json: list[bytes]
    overflow: int
    retries: int

    def pages(self, limit_bytes: int) -> Iterator[InboxPage]:
        """What is new in pages of at most so many bytes, or of one message, which together are ``(former, until]``."""
        after, start, size = self.former, 0, 0
        for end, json in enumerate(self.json):
            if end > start and size + 1 + len(json) > limit_bytes:
                yield self._page(after, self.positions[end - 1], start, end)
                after, start, size = self.positions[end - 1], end, 0
            size += len(json) + (end > start)
        if self.json:
            yield self._page(after, self.until, start, len(self.json))

    def _page(self, after: Position, until: Position, start: int, end: int) -> InboxPage:
        messages = b",".join(self.json[start:end])
        return InboxPage(after, until, self.positions[start], end - start, messages, missed=False)


def _watermark(tag: str, partition: str) -> str:
    return f"{{{tag}}}:applied:{partition}"


def keys(user: str) -> tuple[str, str]:
    """The keys of a user's inbox and devices."""
    return f"{{u:{user}}}:inbox", f"{{u:{user}}}:devices"


def _traced(user: str) -> str:
    return f"{{u:{user}}}:traced"


def digest(sender: str, message_id: str) -> bytes:
    """What stands for a message in the retry window: 96 bits, so that two are never taken for one."""
    return blake2b(f"{sender}\0{message_id}".encode(), digest_size=12).digest()


def _parts(batches: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    """Split so that the batches of a recipient, whose order counts, stay in one part."""
    start = messages = 0
    for end, batch in enumerate(batches):
        if messages >= APPEND_AT_ONCE and batch.user != batches[end - 1].user:
            yield batches[start:end]
            start, messages = end, 0
        messages += len(batch.messages)
    yield batches[start:]


class Inbox:
    """The inboxes of all users.

    Every method but ``adopt`` waits for a Redis that is away when it is called with ``patient``; else it raises
    ``RedisUnavailable``. Doing any of them again changes nothing.
    """

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._ttl_ms = settings.inbox_ttl * 1000
        self._window_ms = settings.retry_window * 1000
        self._version = settings.topics_version

    def _name(self, partition: int, version: int | None = None) -> str:
        # Workers of two versions of the topics, in a repartition, have nothing to do with each other's partitions.
        version = version or self._version
        return str(partition) if version == 1 else f"{version}/{partition}"

    async def fence(self, partition: int, expected: str, token: str) -> int | None:
        """Make ``token`` the one to append with for a partition of the log.

        Returns ``None`` if all primaries still had the one expected, so have lost nothing since it was adopted; else
        the offset below which all that was applied is surely on every one of them, 0 if one was never marked. Raises
        ``RedisUnavailable``.
        """
        name = self._name(partition)
        answers = await self._cluster.on_primaries(
            lambda tag: ("FCALL", function("fence"), 1, _watermark(tag, name), name, expected, token)
        )
        return min((int(applied) for kept, applied in answers if not kept), default=None)

    async def mark(self, partition: int, token: str, applied: int) -> bool:
        """Note on every primary what was applied of a partition (all below this offset).

        Returns whether all of them know the token. Raises ``RedisUnavailable``.
        """
        name = self._name(partition)
        answers = await self._cluster.on_primaries(
            lambda tag: ("FCALL", function("mark"), 1, _watermark(tag, name), name, token, applied, 2 * self._ttl_ms)
        )
        return all(answers)

    async def applied(self, partition: int, version: int | None = None) -> int:
        """The offset below which every primary has all of a partition, of a former ``version`` of the topics if given.

        Raises ``RedisUnavailable``.
        """
        name = self._name(partition, version)
        answers = await self._cluster.on_primaries(lambda tag: ("GET", _watermark(tag, name)))
        return min(int(answer or 0) for answer in answers)

    async def invalidate(self, partition: int) -> None:
        """Have the worker of a partition restore its inboxes from the log; raises ``RedisUnavailable``."""
        name = self._name(partition)
        await self._cluster.on_primaries(lambda tag: ("FCALL", function("invalidate"), 1, _watermark(tag, name), name))

    async def restore(self, devices: Mapping[str, Mapping[str, LoggedDevice]]) -> None:
        """Bring the devices of users back as the log has them; what is here and newer stays."""
        commands: list[Command] = []
        for user, of_user in devices.items():
            command: list[Any] = ["FCALL", function("restore"), 2, *keys(user), self._ttl_ms]
            for name, device in of_user.items():
                command += (name, str(device.cursor), device.seen, device.number)
            commands.append(tuple(command))
        for start in range(0, len(commands), RESTORE_AT_ONCE):
            for answer in await self._cluster.patient(commands[start : start + RESTORE_AT_ONCE], "restore"):
                if isinstance(answer, ResponseError):
                    raise answer

    async def append(self, batches: Sequence[Batch], tokens: Mapping[int, str]) -> list[Appended]:
        """Append to each recipient's inbox what is new of its batches, which stand together, the oldest first.

        ``tokens`` has the one adopted for each partition of the log. Raises ``FencingTokenStale`` when a server refused
        it; the others may have appended.
        """
        parts = list(_parts(batches))

        async def once() -> list[Appended]:
            if len(parts) == 1:
                return await self._append(parts[0], tokens)
            # Redis works on one part while the next is put together.
            done = await asyncio.gather(*(self._append(part, tokens) for part in parts), return_exceptions=True)
            results: list[Appended] = []
            for found in done:
                if isinstance(found, BaseException):
                    raise found
                results += found
            return results

        return await retry_forever("append", RedisUnavailable, once)

    async def _append(self, part: Sequence[Batch], tokens: Mapping[int, str]) -> list[Appended]:
        commands: list[Command] = []
        now = int(time.time())
        applied: dict[str, str] = {}
        for user, partition, messages in part:
            inbox, devices = keys(user)
            window = messages[0][1].at // self._window_ms
            seen = f"{{u:{user}}}:seen:"
            command: list[Any] = [
                *("FCALL", function("append"), 5, inbox, devices, f"{seen}{window}", f"{seen}{window - 1}"),
                f"{{u:{user}}}:extra",
                *(self._name(partition), tokens[partition], self._ttl_ms),
                *(self._settings.inbox_messages, self._settings.inbox_bytes, MAX_DIGESTS, self._window_ms, now),
                # Of two calls for one user the first may fail and the second not.
                applied.get(user, "0-0"),
            ]
            for position, message in messages:
                text = f"{position.entry}-{position.index}"
                command += (
                    text,
                    message.at // 1000,
                    digest(message.sender, message.id),
                    b'{"pos":"%b"%b' % (text.encode(), message.json),
                )
            applied[user] = text
            commands.append(tuple(command))
        answers = await self._cluster.pipeline(commands)
        results = []
        for batch, sent, answer in zip(part, commands, answers, strict=True):
            if isinstance(answer, ResponseError):
                if str(answer).startswith("STALETOKEN"):
                    raise FencingTokenStale(str(answer))
                raise answer
            former, added = Position.parse(answer[0].decode()), answer[1]
            json: list[bytes] = [sent[20 + 4 * i] for i, new in enumerate(added) if new == 49]
            positions = [position for (position, _), new in zip(batch.messages, added, strict=True) if new == 49]
            until = max(former, batch.messages[-1][0])
            results.append(Appended(former, until, positions, json, added.count(b"2"), added.count(b"0")))
        return results

    async def read(self, requests: Sequence[tuple[str, str, Position, int, int]]) -> list[InboxPage]:
        """One page for each (user, device, after, most messages, most bytes): what is stored above ``after``.

        What the device has acknowledged meanwhile is left out: the page is complete without it.

        At least one message is returned where there is one, however large.
        """
        oldest = int(time.time()) - self._settings.inbox_ttl
        commands = [
            ("FCALL_RO", function("read"), 2, *keys(user), str(after), limit, limit_bytes, oldest, device)
            for user, device, after, limit, limit_bytes in requests
        ]
        pages = []
        for answer in await self._cluster.patient(commands, "read"):
            if isinstance(answer, ResponseError):
                raise answer
            after, until = Position.parse(answer[1].decode()), Position.parse(answer[2].decode())
            if answer[0] == b"missed":
                pages.append(InboxPage(after, until, None, 0, b"", missed=True))
            else:
                first = Position.parse(answer[3].decode()) if answer[3] else None
                pages.append(InboxPage(after, until, first, answer[4], answer[5], missed=False))
        return pages

    async def keep_parents(self, parents: Sequence[tuple[str, Position, str]]) -> None:
        """Keep the traceparents of sampled messages, ``(user, position, traceparent)``, that wait in an inbox.

        The newest ``EXPECTED`` of a user are; with Redis away none is: nobody waits for a trace.
        """
        by_user: defaultdict[str, list[str]] = defaultdict(list)
        for user, position, parent in parents:
            by_user[user] += (str(position), parent)
        with suppress(RedisUnavailable):
            await self._cluster.pipeline(
                [
                    ("FCALL", function("keep_parents"), 1, _traced(user), EXPECTED, self._ttl_ms, *of_user)
                    for user, of_user in by_user.items()
                ]
            )

    async def parents(self, pages: Sequence[tuple[str, InboxPage]]) -> list[list[str]]:
        """The traceparents of the sampled messages on each user's page; with Redis away there are none."""
        commands: list[Command] = []
        for user, page in pages:
            # An empty page may end at a message that has been sent already.
            first = f"({page.until}" if page.first is None else str(page.first)
            commands.append(("FCALL_RO", function("parents"), 1, _traced(user), first, str(page.until)))
        try:
            answers = await self._cluster.pipeline(commands)
        except RedisUnavailable:
            return [[] for _ in pages]
        return [[parent.decode() for parent in answer] if isinstance(answer, list) else [] for answer in answers]

    async def tops(self, users: Sequence[str]) -> list[Position]:
        """The highest position ever applied to each user's inbox."""
        commands = [("FCALL_RO", function("top"), 1, keys(user)[1]) for user in users]
        answers = await self._cluster.patient(commands, "top")
        return [Position.parse(answer.decode()) for answer in answers]

    async def acknowledge(self, acks: Sequence[tuple[str, str, Position]]) -> int:
        """Move the cursor of each (user, device) up to a position, and remove what all devices of the user have.

        Returns how many messages were removed.
        """
        removed = 0
        now = int(time.time())
        commands = [
            ("FCALL", function("acknowledge"), 2, *keys(user), device, str(position), now)
            + (self._ttl_ms, self._settings.max_devices)
            for user, device, position in acks
        ]
        for answer in await self._cluster.patient(commands, "acknowledge"):
            if isinstance(answer, ResponseError):
                raise answer
            removed += answer
        return removed

    async def hello(self, user: str, device: str, after: Position | None, log_end: Position = ORIGIN) -> Device:
        """Register a device and take its next connection number; raises ``RedisUnavailable``.

        ``after`` moves its cursor forward, as an acknowledgement does, at most to the inbox's top or ``log_end``,
        whichever is higher.
        """
        claim = "" if after is None else str(after)
        answer = await self._cluster.call(
            ("FCALL", function("hello"), 2, *keys(user), device, int(time.time()), self._ttl_ms)
            + (self._settings.max_devices, claim, str(log_end), time.time_ns() // 1_000_000)
        )
        if isinstance(answer, ResponseError):
            raise answer
        cursor, number, top, floor, removed = answer
        return Device(
            Position.parse(cursor.decode()),
            number,
            Position.parse(top.decode()),
            Position.parse(floor.decode()),
            removed,
        )
