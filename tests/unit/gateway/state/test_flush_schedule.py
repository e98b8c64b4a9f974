"""The schedule of a topic's records: one interval for all partitions, and a shared wait of those that linger."""

from __future__ import annotations

import math

import pytest

from gateway.state.flush_schedule import TOGETHER, FlushSchedule

NEVER = -math.inf


def test_the_first_record_may_leave_at_once() -> None:
    assert FlushSchedule(0.01).next_flush(5.0, NEVER) <= 5.0


def test_the_next_record_waits_for_the_interval() -> None:
    schedule = FlushSchedule(0.01)
    schedule.on_flush(5.0)
    assert schedule.next_flush(5.0, 5.0) == pytest.approx(5.01)
    assert schedule.next_flush(5.02, 5.0) <= 5.02


def test_another_partition_joins_a_record_that_has_just_left_and_later_waits() -> None:
    schedule = FlushSchedule(0.01)
    schedule.on_flush(5.0)
    assert schedule.next_flush(5.0 + TOGETHER / 2, NEVER) == 5.0 + TOGETHER / 2
    assert schedule.next_flush(5.0 + 2 * TOGETHER, NEVER) == pytest.approx(5.01)


def test_records_that_leave_together_do_not_put_off_the_next_time() -> None:
    schedule = FlushSchedule(0.01)
    schedule.on_flush(5.0)
    schedule.on_flush(5.0 + TOGETHER / 2)
    assert schedule.next_flush(5.005, 5.0) == pytest.approx(5.01)


def test_items_that_linger_share_the_end_of_their_wait() -> None:
    schedule = FlushSchedule(0.01)
    assert schedule.linger(1.0, 0.1) == pytest.approx(1.1)
    assert schedule.linger(1.05, 0.1) == pytest.approx(1.1)
    # The first one after that end begins the next wait.
    assert schedule.linger(1.1, 0.1) == pytest.approx(1.2)


def test_an_item_never_waits_longer_than_it_may() -> None:
    schedule = FlushSchedule(0.01)
    schedule.linger(1.0, 10.0)
    assert schedule.linger(1.0, 0.1) == pytest.approx(1.1)
