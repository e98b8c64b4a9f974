"""The records of ``log_generations``: what they say of a log, and that those of before are read."""

from __future__ import annotations

import msgspec
import pytest

from chat_streams.kafka.generations import Generation, decode, newest, why_closed

FIRST = Generation(1, "a", 8)
SECOND = Generation(2, "b", 16, 2)


def test_a_record_of_an_open_log_is_as_it_was_before_logs_could_be_closed() -> None:
    assert msgspec.json.encode(FIRST) == b'{"generation":1,"topic_id":"a","partitions":8}'
    assert decode(b'{"generation":2,"topic_id":"b","partitions":16,"version":2}') == SECOND


def test_a_program_of_before_takes_the_notice_for_the_generation_it_knows() -> None:
    class Before(msgspec.Struct):
        generation: int
        topic_id: str
        partitions: int
        version: int = 1

    closing = msgspec.structs.replace(FIRST, closing="attempt")
    assert msgspec.json.decode(msgspec.json.encode(closing), type=Before) == Before(1, "a", 8)


def test_the_newest_generation_is_the_one_with_the_highest_number() -> None:
    assert newest([SECOND, FIRST]) == SECOND
    assert newest([]) is None


@pytest.mark.parametrize("known", [[FIRST], [], [SECOND]])
def test_an_open_log_is_not_closed_and_neither_is_one_nobody_knows(known: list[Generation]) -> None:
    assert why_closed(known, "a") == ""


def test_a_log_is_closed_by_a_repartition_and_for_good_by_a_newer_log() -> None:
    closing = msgspec.structs.replace(FIRST, closing="attempt")
    assert "repartition" in why_closed([closing], "a")
    ended = why_closed([closing, SECOND], "a")
    assert "CHAT_TOPICS_VERSION=2 and CHAT_PARTITIONS=16" in ended
    assert why_closed([closing, SECOND], "b") == ""
