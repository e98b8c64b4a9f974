"""The chat database, in DynamoDB: every message by conversation and time, and by recipient and position.

An item has ``conversation`` (partition key: ``dm#<a>#<b>``, ids sorted), ``at_id`` (sort key: ``<append time in ms,
13 digits>#<position, as in the index>#<id>#<sender>``, so that a page is in the order of the log),
``recipient`` and ``position`` (keys of the index ``by_position``, from which missed ranges of an inbox are read),
``sender``, and ``json`` (the message as its recipient gets it). A message of a record of version 1 has the time of its
gateway and no position in ``at_id``: those of one millisecond are in the order of their ids.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import aioboto3
import structlog
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from chat_streams.model.errors import HistoryUnavailable
from chat_streams.model.position import Position
from chat_streams.model.records import LOGGED, Message
from chat_streams.runtime.retry import DYNAMODB_ERRORS, retry_forever
from chat_streams.runtime.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.client import DynamoDBClient

log = structlog.get_logger()

INDEX: Final = "by_position"
BATCH_ITEMS: Final = 25
BATCHES_AT_ONCE: Final = 8
BATCH_READS: Final = 100
LOOK_AGAIN_S: Final = 1.0
"""Seconds until the row of a cursor is looked for once more: another replica of the database may not have it yet."""
MOST_REFUSALS: Final = 10
PAGE_BYTES: Final = 1024 * 1024
CURSOR: Final = re.compile(r"[0-9]{13}#([0-9]{20}-[0-9]{10}#)?[^#]+#[^#]+", re.ASCII)
# Errors for which a retry is useless: a bug, a missing table, missing rights.
_FINAL: Final = {"ValidationException", "ResourceNotFoundException", "AccessDeniedException"}


class _Again(Exception):
    """The database carried out a request in part only, because it throttles us."""


class Entry(NamedTuple):
    """A message, its position, and when its record was appended to the log (ms since the epoch).

    ``first`` is the position it had before it was redriven, if it was: its row is the same.
    """

    position: Position
    logged_at: int
    message: Message
    first: Position | None = None


class HistoryPage(NamedTuple):
    """A page of messages as JSON objects, oldest first, and the cursor of the next older page; ``None`` on the last."""

    messages: list[bytes]
    cursor: str | None


def conversation(a: str, b: str) -> str:
    """Return the partition key of the messages between two users; their order does not matter."""
    first, second = sorted((a, b))
    return f"dm#{first}#{second}"


def _sort_key(position: Position) -> str:
    return f"{position.entry:020d}-{position.index:010d}"


def _key(entry: Entry) -> dict[str, Any]:
    position, logged_at, message, first = entry
    # A message of version 1 that is written again must become the row that it is already.
    place = f"{logged_at:013d}#{_sort_key(first or position)}" if message.at == LOGGED else f"{message.at:013d}"
    return {
        "conversation": {"S": conversation(message.sender, message.to)},
        # With the sender, since messages of both may have the same time, and positions on partitions of their own.
        "at_id": {"S": f"{place}#{message.id}#{message.sender}"},
    }


def _item(entry: Entry) -> dict[str, Any]:
    position, logged_at, message, _ = entry
    return _key(entry) | {
        "recipient": {"S": message.to},
        "position": {"S": _sort_key(position)},
        "sender": {"S": message.sender},
        "json": {"B": message.json_at(str(position), logged_at)},
    }


def _unknown(cursor: str) -> ValueError:
    return ValueError(f"no page returned the cursor {cursor[:60]!r}")


def _within_bytes(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first items that fit into one frame, at least one."""
    size = 0
    for count, item in enumerate(items):
        size += len(item["json"]["B"])
        if count and size > PAGE_BYTES:
            return items[:count]
    return items


def _once(newest_first: list[dict[str, Any]]) -> list[bytes]:
    """Return the messages, oldest first; of those with the same sender and id, only the oldest."""
    first = {_identity(item): item for item in newest_first}
    return [item["json"]["B"] for item in newest_first[::-1] if first[_identity(item)] is item]


def _identity(item: dict[str, Any]) -> tuple[str, str]:
    _, message_id, sender = item["at_id"]["S"].rsplit("#", 2)
    return f"{message_id}#{sender}", item["conversation"]["S"]


class ChatHistory:
    """The history of all conversations.

    While the database is down, ``put`` waits, and the other methods raise ``HistoryUnavailable``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._client: DynamoDBClient | None = None
        self._lock = asyncio.Lock()
        self._free_requests = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def close(self) -> None:
        """Close all connections."""
        await self._stack.aclose()
        self._client = None

    async def _db(self) -> DynamoDBClient:
        async with self._lock:
            client = self._client
            if client is None:
                config = AioConfig(
                    connect_timeout=self._settings.engine_timeout,
                    read_timeout=self._settings.engine_timeout,
                    retries={"max_attempts": 1},
                    max_pool_connections=BATCHES_AT_ONCE * 2,
                )
                client = self._client = await self._stack.enter_async_context(
                    aioboto3.Session().client("dynamodb", endpoint_url=self._settings.dynamodb_endpoint, config=config)
                )
        return client

    async def create(self) -> bool:
        """Create the table if it is missing; returns whether it was. Raises ``HistoryUnavailable``."""
        db = await self._db()
        try:
            try:
                await db.describe_table(TableName=self._settings.history_table)
            except db.exceptions.ResourceNotFoundException:
                pass
            else:
                return False
            try:
                await db.create_table(
                    TableName=self._settings.history_table,
                    BillingMode="PAY_PER_REQUEST",
                    AttributeDefinitions=[
                        {"AttributeName": name, "AttributeType": "S"}
                        for name in ("conversation", "at_id", "recipient", "position")
                    ],
                    KeySchema=[
                        {"AttributeName": "conversation", "KeyType": "HASH"},
                        {"AttributeName": "at_id", "KeyType": "RANGE"},
                    ],
                    GlobalSecondaryIndexes=[
                        {
                            "IndexName": INDEX,
                            "KeySchema": [
                                {"AttributeName": "recipient", "KeyType": "HASH"},
                                {"AttributeName": "position", "KeyType": "RANGE"},
                            ],
                            "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["json"]},
                        }
                    ],
                )
            except db.exceptions.ResourceInUseException:
                # A request that timed out was sent twice, or another process is creating the table.
                log.info("the table is being made already", table=self._settings.history_table)
            await db.get_waiter("table_exists").wait(TableName=self._settings.history_table)
        except (ClientError, BotoCoreError) as error:
            raise HistoryUnavailable(
                f"no table {self._settings.history_table} at {self._settings.dynamodb_endpoint or 'AWS'}: {error}"
            ) from error
        return True

    async def put(self, entries: Iterable[Entry]) -> None:
        """Write messages and wait until they are stored; writing a message again changes nothing."""
        # DynamoDB refuses a batch that has an item twice, as a message of version 1 may be.
        items = {(item["conversation"]["S"], item["at_id"]["S"]): item for item in map(_item, entries)}
        unique = list(items.values())
        await asyncio.gather(
            *(self._put_batch(unique[i : i + BATCH_ITEMS]) for i in range(0, len(unique), BATCH_ITEMS))
        )

    async def _put_batch(self, items: Sequence[dict[str, Any]]) -> None:
        table = self._settings.history_table
        left: Any = [{"PutRequest": {"Item": item}} for item in items]

        async def put() -> None:
            nonlocal left
            with DYNAMODB_ERRORS.count_exceptions():
                try:
                    db = await self._db()
                    answer = await db.batch_write_item(RequestItems={table: left})
                except ClientError as error:
                    # All else an operator can mend: a table or a right that is missing is no fault of the messages.
                    if error.response["Error"]["Code"] == "ValidationException":
                        raise
                    raise _Again(str(error)) from error
                if left := answer["UnprocessedItems"].get(table, []):
                    raise _Again(f"{len(left)} of {len(items)} items were not processed")

        async with self._free_requests:
            await retry_forever("write history", (_Again, BotoCoreError, OSError, TimeoutError), put)

    async def missing(self, messages: Sequence[Entry]) -> list[int]:
        """Return the indexes of the messages that the database does not have, in ascending order.

        Messages are compared by key, without their JSON. Raises ``HistoryUnavailable``.
        """
        keys = [(item["conversation"]["S"], item["at_id"]["S"]) for item in map(_key, messages)]
        unseen = set(keys)
        # Keys that the eventually consistent read does not return are read again consistently.
        for consistent in (False, True):
            wanted = sorted(unseen)
            batches = [wanted[i : i + BATCH_READS] for i in range(0, len(wanted), BATCH_READS)]
            for found in await asyncio.gather(*(self._existing(batch, consistent) for batch in batches)):
                unseen -= found
        return [index for index, key in enumerate(keys) if key in unseen]

    async def _existing(self, keys: Sequence[tuple[str, str]], consistent: bool) -> set[tuple[str, str]]:
        table = self._settings.history_table
        found: set[tuple[str, str]] = set()
        unprocessed: Any = [
            {"conversation": {"S": conversation}, "at_id": {"S": at_id}} for conversation, at_id in keys
        ]

        async def get() -> None:
            nonlocal unprocessed
            request: Any = {"Keys": unprocessed, "ProjectionExpression": "conversation, at_id"}
            try:
                db = await self._db()
                answer = await db.batch_get_item(RequestItems={table: request | {"ConsistentRead": consistent}})
            except ClientError as error:
                if error.response["Error"]["Code"] in _FINAL:
                    raise HistoryUnavailable(f"table {table}: {error}") from error
                raise _Again(str(error)) from error
            except (BotoCoreError, OSError, TimeoutError) as error:
                where = self._settings.dynamodb_endpoint or "AWS"
                raise HistoryUnavailable(f"no DynamoDB at {where}: {error!r}") from error
            found.update((item["conversation"]["S"], item["at_id"]["S"]) for item in answer["Responses"][table])
            rest = answer["UnprocessedKeys"].get(table)
            unprocessed = rest["Keys"] if rest else []
            if unprocessed:
                raise _Again(f"{len(unprocessed)} keys were not processed")

        async with self._free_requests:
            try:
                await retry_forever("look for history", _Again, get, attempts=MOST_REFUSALS)
            except _Again as error:
                raise HistoryUnavailable(f"table {table}: {error}") from error
        return found

    async def page(self, a: str, b: str, before: str | None, limit: int) -> HistoryPage:
        """Return the newest messages of a conversation that are older than a cursor, oldest first.

        A page holds at most 1 MiB, but at least one message. Raises ``HistoryUnavailable``, and ``ValueError`` for a
        cursor that no page of this conversation returned.

        Args:
            a: Id of one user.
            b: Id of the other user.
            before: Cursor that the last page returned, exclusive; ``None`` for the newest page.
            limit: The largest number of messages.
        """
        if before is not None and CURSOR.fullmatch(before) is None:
            raise _unknown(before)
        condition, values = "conversation = :c", {":c": {"S": conversation(a, b)}}
        if before is not None:
            condition += " AND at_id <= :b"
            values[":b"] = {"S": before}
        items = await self._newest(
            limit + 1, "at_id", before, KeyConditionExpression=condition, ExpressionAttributeValues=values
        )
        page = _within_bytes(items[:limit])
        cursor = page[-1]["at_id"]["S"] if len(items) > len(page) else None
        return HistoryPage(_once(page), cursor)

    async def range(
        self, recipient: str, after: Position, until: Position, before: Position | None, limit: int
    ) -> HistoryPage:
        """Return the newest messages to a user in ``(after, until]`` that are below ``before``, oldest first.

        A page holds at most 1 MiB, but at least one message; its cursor is the next ``before``. Raises
        ``HistoryUnavailable``, and ``ValueError`` for a position that no page of this range returned as its cursor.

        Args:
            recipient: Id of the user.
            after: Lower end of the range, exclusive.
            until: Upper end of the range, inclusive.
            before: Position that the last page returned as its cursor, exclusive; ``None`` for the newest page.
            limit: The largest number of messages.
        """
        if before is not None and not after < before <= until:
            raise _unknown(str(before))
        last = until if before is None else before
        # The lowest position above ``after``, since BETWEEN is inclusive.
        first = Position(after.entry, after.index + 1)
        if last < first:
            return HistoryPage([], None)
        items = await self._newest(
            limit + 1,
            "position",
            None if before is None else _sort_key(before),
            IndexName=INDEX,
            KeyConditionExpression="recipient = :r AND #p BETWEEN :a AND :u",
            ExpressionAttributeNames={"#p": "position"},
            ExpressionAttributeValues={
                ":r": {"S": recipient},
                ":a": {"S": _sort_key(first)},
                ":u": {"S": _sort_key(last)},
            },
        )
        page = _within_bytes(items[:limit])
        cursor = None
        if len(items) > len(page):
            entry, _, index = page[-1]["position"]["S"].partition("-")
            cursor = str(Position(int(entry), int(index)))
        return HistoryPage(_once(page), cursor)

    async def _newest(self, most: int, key: str, cursor: str | None, **query: Any) -> list[dict[str, Any]]:
        """Return the ``most`` newest items of a query, the newest first, without the one of a cursor.

        The query ends with the item whose ``key`` the cursor is; raises ``ValueError`` when there is none.
        """
        if cursor is None:
            return await self._query(most, 0, **query)
        for again in (False, True):
            if again:
                await asyncio.sleep(LOOK_AGAIN_S)
            items = await self._query(most + 1, 1, **query)
            if items and items[0][key]["S"] == cursor:
                return items[1:]
        raise _unknown(cursor)

    async def _query(self, most: int, skipped: int, **arguments: Any) -> list[dict[str, Any]]:
        """Return the newest items; at most ``most``, and not many more than fill a page behind the ``skipped`` ones."""
        items: list[dict[str, Any]] = []
        arguments |= {"ScanIndexForward": False, "Limit": most}
        try:
            with DYNAMODB_ERRORS.count_exceptions():
                db = await self._db()
                while True:
                    answer = await db.query(TableName=self._settings.history_table, **arguments)
                    items += answer["Items"]
                    # DynamoDB ends a page after 1 MiB, even below its limit of items.
                    if len(items) >= most or "LastEvaluatedKey" not in answer:
                        return items
                    if len(_within_bytes(items[skipped:])) < len(items) - skipped:
                        return items
                    arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        except (ClientError, BotoCoreError, OSError, TimeoutError) as error:
            raise HistoryUnavailable(repr(error)) from error
