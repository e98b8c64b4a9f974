"""Where the chat database is."""

from __future__ import annotations

import pytest

from chat_streams.runtime.settings import Settings
from tables.chat_history import ChatHistory


async def test_without_an_endpoint_it_is_aws_by_https(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    history = ChatHistory(Settings(dynamodb_endpoint=None))
    try:
        assert (await history._db()).meta.endpoint_url == "https://dynamodb.eu-central-1.amazonaws.com"
    finally:
        await history.close()
