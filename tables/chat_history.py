"""The chat database, in DynamoDB: every message by conversation and time, and by recipient and position.

An item has ``conversation`` (partition key: ``dm#<a>#<b>``, ids sorted), ``at_id`` (sort key: ``<ms since the epoch, 13
digits>#<id>#<sender>``), ``recipient`` and ``position`` (keys of the index ``by_position``, from which missed ranges of
an inbox are read), ``sender``, and ``json`` (the message as its recipient gets it).
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
from chat_streams.model.position import MAX_INDEX, Position
from chat_streams.model.records import Message
from chat_streams.runtime.retry import DYNAMODB_ERRORS, retry_forever
from chat_streams.runtime.settings import Settings

if TYPE_CHECKING:
    from types_aiobotocore_dynamodb.client import DynamoDBClient

log = structlog.get_logger()

INDEX: Final = "by_position"
BATCH_ITEMS: Final = 25
BATCHES_AT_ONCE: Final = 8
BATCH_READS: Final = 100
MOST_REFUSALS: Final = 10
PAGE_BYTES: Final = 1024 * 1024
CURSOR: Final = re.compile(r"[0-9]{13}#[^#]+#[^#]+", re.ASCII)
# Errors for which a retry is useless: a bug, a missing table, missing rights.
_FINAL: Final = {"ValidationException", "ResourceNotFoundException", "AccessDeniedException"}


class _Again(Exception):
    """The database carried out a request in part only, because it throttles us."""


class Entry(NamedTuple):
    """A message and its position."""

    position: Position
    message: Message


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


def _below(position: Position) -> Position:
    if position.index:
        return Position(position.entry, position.index - 1)
    return Position(position.entry - 1, MAX_INDEX)


def _key(message: Message) -> dict[str, Any]:
    return {
        "conversation": {"S": conversation(message.sender, message.to)},
        # With the sender, since two users may send messages of the same id in the same millisecond.
        "at_id": {"S": f"{message.at:013d}#{message.id}#{message.sender}"},
    }


def _item(entry: Entry) -> dict[str, Any]:
    position, message = entry
    return _key(message) | {
        "recipient": {"S": message.to},
        "position": {"S": _sort_key(position)},
        "sender": {"S": message.sender},
        "json": {"B": b'{"pos":"%b"%b' % (str(position).encode(), message.json)},
    }


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
    return item["at_id"]["S"].split("#", 1)[1], item["conversation"]["S"]


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
        # DynamoDB refuses a batch that has an item twice; a message sent twice in the same millisecond is one item.
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
                    if error.response["Error"]["Code"] in _FINAL - {"ResourceNotFoundException"}:
                        raise
                    raise _Again(str(error)) from error
                if left := answer["UnprocessedItems"].get(table, []):
                    raise _Again(f"{len(left)} of {len(items)} items were not processed")

        async with self._free_requests:
            await retry_forever("write history", (_Again, BotoCoreError, OSError, TimeoutError), put)

    async def missing(self, messages: Sequence[Message]) -> list[int]:
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
        text that is not a cursor.

        Args:
            a: Id of one user.
            b: Id of the other user.
            before: Cursor that the last page returned, exclusive; ``None`` for the newest page.
            limit: The largest number of messages.
        """
        if before is not None and CURSOR.fullmatch(before) is None:
            raise ValueError(f"{before[:60]!r} is no cursor")
        condition, values = "conversation = :c", {":c": {"S": conversation(a, b)}}
        if before is not None:
            condition += " AND at_id < :b"
            values[":b"] = {"S": before}
        items = await self._query(
            KeyConditionExpression=condition,
            ExpressionAttributeValues=values,
            ScanIndexForward=False,
            Limit=limit + 1,
        )
        page = _within_bytes(items[:limit])
        cursor = page[-1]["at_id"]["S"] if len(items) > len(page) else None
        return HistoryPage(_once(page), cursor)

    async def range(
        self, recipient: str, after: Position, until: Position, before: Position | None, limit: int
    ) -> HistoryPage:
        """Return the newest messages to a user in ``(after, until]`` that are below ``before``, oldest first.

        A page holds at most 1 MiB, but at least one message; its cursor is the next ``before``. Raises
        ``HistoryUnavailable``.

        Args:
            recipient: Id of the user.
            after: Lower end of the range, exclusive.
            until: Upper end of the range, inclusive.
            before: Position that the last page returned as its cursor, exclusive; ``None`` for the newest page.
            limit: The largest number of messages.
        """
        last = until if before is None else min(until, _below(before))
        # The lowest position above ``after``, since BETWEEN is inclusive.
        first = Position(after.entry, after.index + 1)
        if last < first:
            return HistoryPage([], None)
        items = await self._query(
            IndexName=INDEX,
            KeyConditionExpression="recipient = :r AND #p BETWEEN :a AND :u",
            ExpressionAttributeNames={"#p": "position"},
            ExpressionAttributeValues={
                ":r": {"S": recipient},
                ":a": {"S": _sort_key(first)},
                ":u": {"S": _sort_key(last)},
            },
            ScanIndexForward=False,
            Limit=limit + 1,
        )
        page = _within_bytes(items[:limit])
        cursor = None
        if len(items) > len(page):
            entry, _, index = page[-1]["position"]["S"].partition("-")
            cursor = str(Position(int(entry), int(index)))
        return HistoryPage(_once(page), cursor)

    async def _query(self, **arguments: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        limit = arguments["Limit"]
        try:
            with DYNAMODB_ERRORS.count_exceptions():
                db = await self._db()
                while True:
                    answer = await db.query(TableName=self._settings.history_table, **arguments)
                    items += answer["Items"]
                    # DynamoDB ends a page after 1 MiB, even below its limit of items.
                    if len(items) >= limit or "LastEvaluatedKey" not in answer:
                        return items
                    arguments["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
        except (ClientError, BotoCoreError, OSError, TimeoutError) as error:
            raise HistoryUnavailable(repr(error)) from error
