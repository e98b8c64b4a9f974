"""A gateway that stood still, and what was sent to it before."""

from __future__ import annotations

from gateway.state.standstill import Standstill


def test_a_process_that_runs_is_never_behind() -> None:
    found = Standstill(10.0, 0.0)
    for now in range(100):
        found.beat(float(now))
        assert not found.is_behind(0.0, now + 9.0)


def test_what_came_before_a_standstill_is_told_from_what_comes_after() -> None:
    found = Standstill(10.0, 0.0)
    found.beat(5.0)
    # Whatever the loop runs first: frames that waited in a socket, or the beat.
    assert found.is_behind(4.0, 3_600.0)
    found.beat(3_600.0)
    assert found.is_behind(4.0, 3_601.0)
    assert not found.is_behind(3_600.0, 3_601.0)
    for now in range(3_601, 3_700):
        found.beat(float(now))
    assert found.is_behind(4.0, 3_699.0)
    assert not found.is_behind(3_650.0, 3_699.0)
