"""The chat database: its address, the keys of its rows, its pages, and which of its errors are about a message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from chat_streams.model.position import Position
from chat_streams.model.records import LOGGED, Message
from chat_streams.runtime.settings import Settings
from tables import chat_history
from tables.chat_history import PAGE_BYTES, ChatHistory, Entry, _item, _key

T = 1_800_000_000_000
LAST = Position((1 << 64) - 1, 0)


async def test_without_an_endpoint_it_is_aws_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    history = ChatHistory(Settings(dynamodb_endpoint=None))
    try:
        assert (await history._db()).meta.endpoint_url == "https://dynamodb.eu-central-1.amazonaws.com"
    finally:
        await history.close()


def entry(offset: int, index: int = 0, at: int = T, id_: str = "", sender: str = "alice", size: int = 0) -> Entry:
    json = b',"id":"%d-%d","body":"%b"}' % (offset, index, b"x" * size)
    to = "bob" if sender == "alice" else "alice"
    return Entry(Position.of(1, offset, index), at, Message(to, sender, id_ or f"{offset}-{index}", LOGGED, json))


def sort_key(of: Entry) -> str:
    return str(_key(of)["at_id"]["S"])


places = st.tuples(st.integers(T, T + 2), st.integers(0, 1 << 39), st.integers(0, 999), st.text("az09", min_size=1))


@given(st.lists(places, min_size=2, max_size=20))
def test_rows_sort_by_time_and_then_by_position(found: list[tuple[int, int, int, str]]) -> None:
    entries = [entry(offset, index, at, id_) for at, offset, index, id_ in found]
    by_key = sorted(entries, key=lambda e: (sort_key(e), e.message.id))
    assert [(e.logged_at, e.position) for e in by_key] == sorted((e.logged_at, e.position) for e in entries)


def test_a_row_is_of_one_message_alone() -> None:
    # The two directions of a conversation are on partitions of their own, and may be at the same position.
    assert sort_key(entry(7)) != sort_key(entry(7, sender="bob"))
    # Redriven, it has another position and the same row.
    moved = entry(9)._replace(first=entry(7).position, message=entry(7).message)
    assert sort_key(moved) == sort_key(entry(7))
    old = Message("bob", "alice", "m", T - 5, b',"at":"t"}')
    # What an older program has written is the same row when it is written again.
    assert sort_key(Entry(Position.of(1, 7, 0), T, old)) == f"{T - 5}#m#alice"


class Database:
    """A table in memory, which counts what it returns; a page of it ends at ``page`` items."""

    def __init__(self, entries: list[Entry], page: int) -> None:
        self.items = sorted((_item(each) for each in entries), key=lambda item: str(item["at_id"]["S"]))
        self.page = page
        self.read = 0
        self.hidden = 0

    async def query(self, **query: Any) -> dict[str, Any]:
        key = "position" if "IndexName" in query else "at_id"
        values = query["ExpressionAttributeValues"]
        low, high = values.get(":a", {"S": ""})["S"], values.get(":u", values.get(":b", {"S": "~"}))["S"]
        start = query.get("ExclusiveStartKey", "~")
        items = [i for i in self.items if low <= i[key]["S"] <= high and i[key]["S"] < start]
        items.sort(key=lambda item: str(item[key]["S"]), reverse=True)
        if self.hidden:
            self.hidden -= 1
            items = items[1:]
        found = items[: min(query["Limit"], self.page)]
        self.read += len(found)
        more = {"LastEvaluatedKey": found[-1][key]["S"]} if len(items) > len(found) else {}
        return {"Items": found} | more


class History(ChatHistory):
    """A history of some messages from alice to bob."""

    def __init__(self, entries: list[Entry], page: int = 1_000) -> None:
        super().__init__(Settings())
        self.database: Any = Database(entries, page)

    async def _db(self) -> Any:
        return self.database


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_history, "LOOK_AGAIN_S", 0.0)


@pytest.mark.parametrize("limit", [1, 2, 7, 10, 11, 200])
@pytest.mark.parametrize("page", [1, 3, 1_000])
async def test_pages_of_any_size_hold_all_once_in_order(limit: int, page: int) -> None:
    entries = [entry(n // 3, n % 3) for n in range(10)]
    history = History(entries, page)
    ids = [b'"id":"%d-%d"' % (n // 3, n % 3) for n in range(10)]
    for of in ("conversation", "range"):
        found: list[bytes] = []
        cursor: str | None = None
        while True:
            if of == "conversation":
                part = await history.page("alice", "bob", cursor, limit)
            else:
                before = None if cursor is None else Position.parse(cursor)
                part = await history.range("bob", Position(0, 0), LAST, before, limit)
            assert 0 < len(part.messages) <= limit
            found = part.messages + found
            if (cursor := part.cursor) is None:
                break
        assert [next(i for i in ids if i in json) for json in found] == ids


async def test_a_page_is_bounded_in_bytes_and_so_is_what_is_read_for_it() -> None:
    history = History([entry(n, size=PAGE_BYTES // 4) for n in range(100)], page=4)
    found: list[bytes] = []
    cursor: str | None = None
    for _ in range(50):
        before = history.database.read
        part = await history.page("alice", "bob", cursor, 200)
        assert sum(map(len, part.messages)) <= PAGE_BYTES
        assert history.database.read - before <= 2 * 4
        found = part.messages + found
        if (cursor := part.cursor) is None:
            break
    assert len(found) == 100
    large = History([entry(n, size=2 * PAGE_BYTES) for n in range(2)])
    first = await large.page("alice", "bob", None, 200)
    assert len(first.messages) == 1
    assert len((await large.page("alice", "bob", first.cursor, 200)).messages) == 1


async def test_a_cursor_that_no_page_returned_is_an_error() -> None:
    history = History([entry(n) for n in range(5)])
    given_ = (await history.page("alice", "bob", None, 2)).cursor
    assert given_ == sort_key(entry(3))
    wrong = ["x", f"{T}#m#alice", sort_key(entry(7)), sort_key(entry(3, at=T + 1)), f"{given_}x"]
    for cursor in wrong:
        with pytest.raises(ValueError, match="no page returned"):
            await history.page("alice", "bob", cursor, 2)
    after, until = Position.of(1, 1, 0), Position.of(1, 4, 0)
    for before in (Position.of(1, 3, 1), after, Position.of(1, 5, 0), Position(0, 0)):
        with pytest.raises(ValueError, match="no page returned"):
            await history.range("bob", after, until, before, 2)


async def test_a_row_that_a_replica_does_not_have_yet_is_looked_for_again() -> None:
    history = History([entry(n) for n in range(5)])
    cursor = (await history.page("alice", "bob", None, 2)).cursor
    history.database.hidden = 1
    assert len((await history.page("alice", "bob", cursor, 2)).messages) == 2


@pytest.mark.parametrize(
    ("code", "waits"),
    [("AccessDeniedException", True), ("ResourceNotFoundException", True), ("ValidationException", False)],
)
async def test_a_missing_right_or_table_is_waited_for_and_a_message_it_refuses_is_not(
    monkeypatch: pytest.MonkeyPatch, code: str, waits: bool
) -> None:
    calls = 0

    async def batch_write_item(**_: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ClientError({"Error": {"Code": code, "Message": ""}}, "BatchWriteItem")
        return {"UnprocessedItems": {}}

    async def database() -> Any:
        return SimpleNamespace(batch_write_item=batch_write_item)

    history = ChatHistory(Settings())
    monkeypatch.setattr(history, "_db", database)
    writing = history.put([Entry(Position.of(1, 1, 0), 1, Message("bob", "alice", "1", 1, b"{}"))])
    if waits:
        await writing
        assert calls == 2
    else:
        with pytest.raises(ClientError):
            await writing
