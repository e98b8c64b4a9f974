"""Which errors are an engine's, and which are about a record."""

from __future__ import annotations

import asyncio

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
)

from chat_streams.model.errors import (
    HistoryUnavailable,
    Interrupted,
    KafkaUnavailable,
    LaneDropped,
    RedisUnavailable,
    TopicsError,
    UndecodableRecord,
)
from chat_streams.processing.away import is_away


def dropped(cause: BaseException | None) -> LaneDropped:
    error = LaneDropped("given up")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        *(RedisUnavailable(), KafkaUnavailable(), HistoryUnavailable(), TopicsError(), Interrupted()),
        *(KafkaConnectionError(), TopicAuthorizationFailedError(), ConnectionRefusedError(), TimeoutError()),
        asyncio.CancelledError(),
        dropped(KafkaUnavailable("more than 10,000 records wait")),
        dropped(KafkaConnectionError()),
        ExceptionGroup("two", [RedisUnavailable(), TimeoutError()]),
    ],
    ids=repr,
)
def test_an_engine_is_away(error: BaseException) -> None:
    assert is_away(error)


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError(), UndecodableRecord(), MessageSizeTooLargeError(), RecordListTooLargeError()),
        *(dropped(MessageSizeTooLargeError()), dropped(ValueError()), dropped(None)),
        ExceptionGroup("two", [RedisUnavailable(), ValueError()]),
    ],
    ids=repr,
)
def test_a_record_cannot_be_applied(error: BaseException) -> None:
    assert not is_away(error)
