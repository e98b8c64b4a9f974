"""Telling users what they missed: records that the log no longer has, and that their inboxes never got.

``docs/architecture.md``, "Records that are gone before they were applied".
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from functools import partial
from typing import NamedTuple

import structlog

from chat_streams.kafka.names import INCOMING_MESSAGES, partition_of
from chat_streams.model.errors import FencingTokenStale, LaneDropped, RedisUnavailable, Rewound
from chat_streams.model.position import Position
from chat_streams.model.records import InboxAdvanced
from chat_streams.processing.delivery_buffer import DeliveryBuffer
from chat_streams.processing.offsets import LostRange
from chat_streams.processing.ordered import OrderedApp
from chat_streams.recovery.fencing import Fencing
from chat_streams.runtime.retry import retry_forever
from chat_streams.runtime.tasks import spawn
from tables.inbox import Inbox
from tables.inbox_index import InboxIndex
from tables.sessions import Sessions

log = structlog.get_logger()


class _Waiting(NamedTuple):
    """A range of positions to be told on a partition, and the future of the number of users who are."""

    after: Position
    until: Position
    told: asyncio.Future[int]


class LostRanges:
    """Tells the users of partitions which messages they missed, those of several partitions in one scan of Redis.

    Args:
        app: The messaging app.
        inbox: The offline store.
        index: Finds whose inboxes there are.
        fencing: Gives the token without which no inbox may be changed.
        sessions: The registry of who is connected.
        partitions: The number of partitions of the log.
    """

    def __init__(
        self, app: OrderedApp, inbox: Inbox, index: InboxIndex, fencing: Fencing, sessions: Sessions, partitions: int
    ) -> None:
        self._app = app
        self._inbox = inbox
        self._index = index
        self._fencing = fencing
        self._sessions = sessions
        self._partitions = partitions
        self._waiting: dict[int, _Waiting] = {}
        self._task: asyncio.Task[None] | None = None

    async def tell(self, partition: int, generation: int, lost: LostRange) -> None:
        """Have each user of a partition told ``missed`` over lost records: at once, or when they come.

        Waits for engines that are away. Raises ``Rewound`` when the partition was revoked or rewound meanwhile.

        Args:
            partition: Partition of ``incoming_messages``.
            generation: Generation of the log.
            lost: The records.
        """
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if (former := self._waiting.pop(partition, None)) is not None and not former.told.done():
            former.told.set_exception(Rewound())  # The run that asked for it is over.
        after, until = Position.before(generation, lost.first), Position.before(generation, lost.end)
        self._waiting[partition] = _Waiting(after, until, told)
        if self._task is None:
            self._task = spawn("tell of losses", self._tell_all(), self._app.end)
        users = await told
        log.error("users are told that they missed messages", topic=INCOMING_MESSAGES, partition=partition, users=users)

    async def _tell_all(self) -> None:
        """Scan for as long as there are ranges to tell; those that come during a scan are for the next one."""
        try:
            while self._waiting:
                ranges, self._waiting = self._waiting, {}
                try:
                    counts = await retry_forever(
                        "tell of what is lost", (RedisUnavailable, LaneDropped), partial(self._scan, ranges)
                    )
                except Exception as error:  # noqa: BLE001 - whatever it is, it is told to all who wait
                    for waiting in ranges.values():
                        if not waiting.told.done():
                            waiting.told.set_exception(error)
                    continue
                for partition, waiting in ranges.items():
                    if not waiting.told.done():
                        waiting.told.set_result(counts[partition])
        finally:
            self._task = None

    async def _scan(self, ranges: dict[int, _Waiting]) -> defaultdict[int, int]:
        counts: defaultdict[int, int] = defaultdict(int)
        async with contextlib.aclosing(self._index.users("devices")) as pages:
            async for page in pages:
                of_partition: defaultdict[int, list[str]] = defaultdict(list)
                for user in page:
                    of_partition[partition_of(user, self._partitions)].append(user)
                for partition, users in of_partition.items():
                    waiting = ranges.get(partition)
                    if waiting is None or waiting.told.done():
                        continue
                    try:
                        counts[partition] += await self._miss(partition, users, waiting)
                    except Rewound as error:
                        # It concerns this partition alone.
                        if not waiting.told.done():
                            waiting.told.set_exception(error)
        return counts

    async def _miss(self, partition: int, users: list[str], waiting: _Waiting) -> int:
        while True:
            token = await self._fencing.token(partition)
            try:
                told = await self._inbox.miss(users, partition, token, waiting.after, waiting.until)
                break
            except FencingTokenStale as error:
                log.warning("redis refused to tell of a loss", partition=partition, error=repr(error))
                await self._fencing.fence(partition, refused=token)
        # The inboxes first, then the registry, as for a message: who connects meanwhile reads the new top.
        buffer = DeliveryBuffer(self._app)
        for user in told:
            for session in self._sessions.of(user):
                buffer.add(session.slot, InboxAdvanced(user, session.connection, session.epoch, waiting.until))
        await (buffer.send() or asyncio.sleep(0))
        return len(told)
