"""The address of the chat database, and which of its errors are about a message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from chat_streams.model.position import Position
from chat_streams.model.records import Message
from chat_streams.runtime.settings import Settings
from tables.chat_history import ChatHistory, Entry


async def test_without_an_endpoint_it_is_aws_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    history = ChatHistory(Settings(dynamodb_endpoint=None))
    try:
        assert (await history._db()).meta.endpoint_url == "https://dynamodb.eu-central-1.amazonaws.com"
    finally:
        await history.close()


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
