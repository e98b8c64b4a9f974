"""The offline message store: one Redis Stream per user, addressed by positions in the log (``lua/inbox.lua``)."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
"""The largest number of digests kept of one user and retry window; beyond it the window is shortened."""
APPEND_AT_ONCE = 500
"""The number of messages after which an append is split, so that Redis works while the next part is built."""


class Device(NamedTuple):
    """The state of a device after ``Inbox.hello``: its cursor and connection number, and the user's inbox.

    ``top`` is the highest position ever applied to the inbox, ``floor`` the highest one removed from it. ``removed`` is
    the number of messages that this hello removed, because all devices of the user have them.
    """

    cursor: Position
    number: int
    top: Position
    floor: Position
    removed: int


class LoggedDevice(NamedTuple):
    """The state of a device according to the log: cursor, connection number, and how long it was not seen, in s."""

    cursor: Position
    unseen_s: int
    number: int


@dataclass(frozen=True)
class InboxPage:
    """All messages of an inbox in ``(after, until]``: ``count`` JSON objects joined by commas.

    ``first`` is the position of the first one. With ``missed`` there are none: the messages in that range left the
    inbox without acknowledgement.
    """

    after: Position
    until: Position
    first: Position | None
    count: int
    messages: bytes
    missed: bool


class Batch(NamedTuple):
    """A batch of messages for one recipient, in order, all from one partition and appended within one retry window.

    With each message comes its position, and when its record was appended to the log (ms since the epoch).
    """

    user: str
    partition: int
    messages: Sequence[tuple[Position, int, Message]]


class Appended(NamedTuple):
    """The outcome of appending a batch: which of its messages are new in the inbox.

    ``former`` is the highest position applied before, ``until`` the one now. In ``(former, until]``, exactly the
    messages ``json`` at ``positions`` were added. ``overflow`` counts the messages that went to history only because
    the quota is used up, ``retries`` those that the inbox had, or had had, before.
    """

    former: Position
    until: Position
    positions: list[Position]
    json: list[bytes]
    overflow: int
    retries: int

    def pages(self, limit_bytes: int) -> Iterator[InboxPage]:
        """Yield the new messages in pages that together cover ``(former, until]``.

        A page has at most ``limit_bytes`` bytes, or one larger message. Without new messages there is no page.
        """
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
    """Return the keys of a user's inbox and devices."""
    return f"{{u:{user}}}:inbox", f"{{u:{user}}}:devices"


def _traced(user: str) -> str:
    return f"{{u:{user}}}:traced"


@contextmanager
def _fenced() -> Iterator[None]:
    """Raise ``FencingTokenStale`` where a server's answer says that the token is not current."""
    try:
        yield
    except ResponseError as error:
        if str(error).startswith("STALETOKEN"):
            raise FencingTokenStale(str(error)) from error
        raise


def digest(sender: str, message_id: str) -> bytes:
    """Return the digest of a message in the retry window: 96 bits, so that two messages never share one in practice."""
    return blake2b(f"{sender}\0{message_id}".encode(), digest_size=12).digest()


def _parts(batches: Sequence[Batch]) -> Iterator[Sequence[Batch]]:
    """Split after ``APPEND_AT_ONCE`` messages, keeping all batches of a recipient in one part, in order."""
    start = messages = 0
    for end, batch in enumerate(batches):
        if messages >= APPEND_AT_ONCE and batch.user != batches[end - 1].user:
            yield batches[start:end]
            start, messages = end, 0
        messages += len(batch.messages)
    yield batches[start:]


class Inbox:
    """The inboxes of all users.

    While Redis is down, ``restore``, ``append``, ``read``, ``tops`` and ``acknowledge`` wait, for as long as it takes;
    ``keep_parents`` and ``parents`` do nothing; the others raise ``RedisUnavailable``. Every call may be repeated.
    """

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._ttl_ms = settings.inbox_ttl * 1000
        self._window_ms = settings.retry_window * 1000
        self._version = settings.topics_version

    def _name(self, partition: int, version: int | None = None) -> str:
        # During a repartition, workers of two versions of the topics run; their partitions must not be confused.
        version = version or self._version
        return str(partition) if version == 1 else f"{version}/{partition}"

    async def fence(self, partition: int, expected: str, token: str) -> int | None:
        """Set the fencing token of a partition on all primaries; appends with any other token are refused from then on.

        Returns ``None`` if all primaries had the expected token, so that none has lost writes since that was set. Else
        returns the lowest mark of the primaries that had not: the offset below which each of them has everything, 0
        if one was never marked, was flushed or has evicted keys. Raises ``RedisUnavailable``.

        Args:
            partition: Partition of ``incoming_messages``.
            expected: The token set before, possibly by another worker.
            token: The new token.
        """
        name = self._name(partition)
        answers = await self._cluster.on_primaries(
            lambda tag: (
                *("FCALL", function("fence"), 2, _watermark(tag, name), f"{_watermark(tag, name)}:token"),
                *(name, expected, token, 2 * self._ttl_ms),
            )
        )
        return min((int(applied) for kept, applied in answers if not kept), default=None)

    async def mark(self, partition: int, token: str, applied: int) -> bool:
        """Set the mark of a partition on every primary that knows the token and has lost nothing since it was set.

        Returns whether this is true of all of them. Raises ``RedisUnavailable``.

        Args:
            partition: Partition of ``incoming_messages``.
            token: The fencing token of this worker.
            applied: The offset below which all records are applied.
        """
        name = self._name(partition)
        answers = await self._cluster.on_primaries(
            lambda tag: ("FCALL", function("mark"), 1, _watermark(tag, name), name, token, applied, 2 * self._ttl_ms)
        )
        return all(answers)

    async def applied(self, partition: int, version: int | None = None) -> int:
        """Return the lowest mark of all primaries: the offset below which each has all of a partition, 0 without one.

        ``version`` is that of the topics; ``None`` for the current one. Raises ``RedisUnavailable``.
        """
        name = self._name(partition, version)
        answers = await self._cluster.on_primaries(lambda tag: ("GET", _watermark(tag, name)))
        return min(int(answer or 0) for answer in answers)

    async def invalidate(self, partition: int) -> None:
        """Drop token and mark of a partition, so that its worker restores the inboxes; raises ``RedisUnavailable``."""
        name = self._name(partition)
        await self._cluster.on_primaries(lambda tag: ("FCALL", function("invalidate"), 1, _watermark(tag, name), name))

    async def restore(
        self, devices: Mapping[str, Mapping[str, LoggedDevice]], gone: Callable[[str], Position | None]
    ) -> None:
        """Restore the devices of users from the log; newer values in Redis are kept.

        Args:
            devices: User -> device -> state.
            gone: Returns the position up to which the log has no messages to a user any more: a device below it is told
                ``missed``, if the user's stream is gone. ``None`` if the log is not applied from its beginning on.
        """
        commands: list[Command] = []
        for user, user_devices in devices.items():
            below = gone(user)
            command: list[Any] = ["FCALL", function("restore"), 2, *keys(user), self._ttl_ms, str(below or "")]
            for name, device in user_devices.items():
                command += (name, str(device.cursor), device.unseen_s, device.number)
            commands.append(tuple(command))
        for start in range(0, len(commands), RESTORE_AT_ONCE):
            await self._cluster.patient(commands[start : start + RESTORE_AT_ONCE], "restore")

    async def append(self, batches: Sequence[Batch], tokens: Mapping[int, str]) -> list[Appended]:
        """Append the new messages of each batch to its recipient's inbox; returns an outcome for each batch.

        Raises ``FencingTokenStale`` when a server refused a token; other servers may have appended by then.

        Args:
            batches: Batches, those of one recipient next to one another, the oldest first.
            tokens: The fencing token of each partition in ``batches``.
        """
        parts = list(_parts(batches))

        async def once() -> list[Appended]:
            if len(parts) == 1:
                return await self._append(parts[0], tokens)
            # Redis works on one part while the next one is built.
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
        applied: dict[str, str] = {}
        for user, partition, messages in part:
            inbox, devices = keys(user)
            window = messages[0][1] // self._window_ms
            seen = f"{{u:{user}}}:seen:"
            command: list[Any] = [
                *("FCALL", function("append"), 6, inbox, devices, f"{seen}{window}", f"{seen}{window - 1}"),
                *(f"{{u:{user}}}:extra", f"{seen}{window + 1}"),
                *(self._name(partition), tokens[partition], self._ttl_ms),
                *(self._settings.inbox_messages, self._settings.inbox_bytes, MAX_DIGESTS, self._window_ms),
                messages[-1][1] // 1000,
                # The last position of this user's call before, which may fail: then this one must fail, too.
                applied.get(user, "0-0"),
            ]
            for position, at, message in messages:
                text = f"{position.entry}-{position.index}"
                command += (text, at // 1000, digest(message.sender, message.id), message.json_at(text, at))
            applied[user] = text
            commands.append(tuple(command))
        with _fenced():
            answers = await self._cluster.pipeline(commands)
        results = []
        for batch, sent, answer in zip(part, commands, answers, strict=True):
            previous_top, added = Position.parse(answer[0].decode()), answer[1]
            json: list[bytes] = [sent[21 + 4 * i] for i, new in enumerate(added) if new == 49]
            positions = [position for (position, _, _), new in zip(batch.messages, added, strict=True) if new == 49]
            until = max(previous_top, batch.messages[-1][0])
            results.append(Appended(previous_top, until, positions, json, added.count(b"2"), added.count(b"0")))
        return results

    async def miss(
        self, users: Sequence[str], partition: int, token: str, after: Position, until: Position
    ) -> list[str]:
        """Have each of these users told ``missed`` over ``(after, until]``, of which nothing can be appended any more.

        Returns the users who are to be told; an inbox that has anything above the range has been told already, or had
        all of it. Raises ``FencingTokenStale`` when a server refused the token; other servers may have done it by then.

        Args:
            users: Ids of users, all of one partition.
            partition: The partition.
            token: Its fencing token.
            after: Lower end of the range, exclusive.
            until: Upper end of the range, inclusive; no position of a message.
        """
        commands: list[Command] = [
            ("FCALL", function("miss"), 2, *keys(user), self._name(partition), token, str(after), str(until))
            + (self._ttl_ms,)
            for user in users
        ]
        with _fenced():
            answers = await self._cluster.patient(commands, "tell of what is lost")
        return [user for user, told in zip(users, answers, strict=True) if told]

    async def read(self, requests: Sequence[tuple[str, str, Position, int, int, int]]) -> list[InboxPage]:
        """Return the page above a position for each request (user, device, after, most messages, most bytes, time).

        The time of a request is when it was appended to the log (ms since the epoch): the age of the messages, which
        are in the log, too, is measured by that.
        A page has at least one message where there is one, however large. Messages that the device has acknowledged
        meanwhile are left out, and the page counts as complete without them.
        """
        ttl = self._settings.inbox_ttl
        commands = [
            ("FCALL_RO", function("read"), 2, *keys(user), str(after), limit, limit_bytes, at // 1000 - ttl, device)
            for user, device, after, limit, limit_bytes, at in requests
        ]
        pages = []
        for answer in await self._cluster.patient(commands, "read"):
            after, until = Position.parse(answer[1].decode()), Position.parse(answer[2].decode())
            if answer[0] == b"missed":
                pages.append(InboxPage(after, until, None, 0, b"", missed=True))
            else:
                first = Position.parse(answer[3].decode()) if answer[3] else None
                pages.append(InboxPage(after, until, first, answer[4], answer[5], missed=False))
        return pages

    async def keep_parents(self, parents: Sequence[tuple[str, Position, str]]) -> None:
        """Store ``(user, position, traceparent)`` of sampled messages that wait in an inbox.

        Only the newest ``EXPECTED`` of a user are kept. While Redis is down none is stored: traces are expendable.
        """
        by_user: defaultdict[str, list[str]] = defaultdict(list)
        for user, position, parent in parents:
            by_user[user] += (str(position), parent)
        with suppress(RedisUnavailable, ResponseError):
            await self._cluster.pipeline(
                [
                    ("FCALL", function("keep_parents"), 1, _traced(user), EXPECTED, self._ttl_ms, *user_parents)
                    for user, user_parents in by_user.items()
                ]
            )

    async def parents(self, pages: Sequence[tuple[str, InboxPage]]) -> list[list[str]]:
        """Return the traceparents of the sampled messages on each (user, page); none while Redis is down."""
        commands: list[Command] = []
        for user, page in pages:
            # An empty page may end at the position of a message that was sent before.
            first = f"({page.until}" if page.first is None else str(page.first)
            commands.append(("FCALL_RO", function("parents"), 1, _traced(user), first, str(page.until)))
        try:
            answers = await self._cluster.pipeline(commands)
        except (RedisUnavailable, ResponseError):
            return [[] for _ in pages]
        return [[parent.decode() for parent in answer] for answer in answers]

    async def tops(self, users: Sequence[str]) -> list[Position]:
        """Return the highest position ever applied to each user's inbox."""
        commands = [("FCALL_RO", function("top"), 1, keys(user)[1]) for user in users]
        answers = await self._cluster.patient(commands, "top")
        return [Position.parse(answer.decode()) for answer in answers]

    async def acknowledge(self, acks: Sequence[tuple[str, str, Position]]) -> int:
        """Raise the cursor of each (user, device, position) to that position; returns the number of messages removed.

        A message is removed once the cursors of all devices of the user have reached it.
        """
        removed = 0
        commands = [
            ("FCALL", function("acknowledge"), 2, *keys(user), device, str(position))
            + (self._ttl_ms, self._settings.max_devices)
            for user, device, position in acks
        ]
        for answer in await self._cluster.patient(commands, "acknowledge"):
            removed += answer
        return removed

    async def hello(self, user: str, device: str, after: Position | None, log_end: Position = ORIGIN) -> Device:
        """Register a device and return its state with its next connection number; raises ``RedisUnavailable``.

        Args:
            user: Id of the user.
            device: Id of the device.
            after: Position that the device claims to have. It raises the cursor as an acknowledgement does, at most to
                the inbox's top or ``log_end``, whichever is higher. ``None`` for no claim.
            log_end: A position above all messages that the user's partition of the log has now.
        """
        claim = "" if after is None else str(after)
        answer = await self._cluster.call(
            ("FCALL", function("hello"), 2, *keys(user), device, self._ttl_ms)
            + (self._settings.max_devices, claim, str(log_end))
        )
        cursor, number, top, floor, removed = answer
        return Device(
            Position.parse(cursor.decode()),
            number,
            Position.parse(top.decode()),
            Position.parse(floor.decode()),
            removed,
        )
