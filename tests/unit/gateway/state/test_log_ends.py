"""The ends of partitions: a log that goes back is noticed, whatever was written before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.state.log_ends import LogEnds


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 2), st.integers(0, 50))))
def test_a_record_at_or_below_the_highest_offset_of_its_partition_is_noticed(
    written: list[tuple[str, int, int]],
) -> None:
    ends = LogEnds()
    highest: dict[tuple[str, int], int] = {}
    for topic, partition, offset in written:
        known = highest.get((topic, partition), -1)
        assert ends.advance(topic, partition, offset) == (known if offset <= known else None)
        highest[topic, partition] = max(known, offset)


def test_an_empty_log_may_begin_at_offset_0() -> None:
    ends = LogEnds()
    assert ends.advance("a", 0, -1) == -1
    assert ends.advance("a", 0, 0) is None
