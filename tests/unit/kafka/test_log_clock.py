"""The log's time by its append times, and what is said of a clock that differs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from chat_streams.kafka.log_clock import MOST_SKEW_S, SKEW_SECONDS, LogClock, SkewReport

HOUR = 3600.0
T = 1_800_000_000.0
"""The log's time when the monotonic clock is at 0, in s."""


def observe(clock: LogClock, monotonic: float, there: float = 0.01, back: float = 0.01, log: float = T) -> None:
    """Append a record that takes some time to get there, and its answer some time to come back."""
    clock.observe(monotonic - there - back, monotonic, int(1000 * (log + monotonic - back)))


def test_before_the_first_append_nothing_is_known_and_nothing_said() -> None:
    clock = LogClock()
    assert clock.now_ms(5.0) is None
    assert clock.skew_s(T + HOUR, 5.0) == 0.0


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=1), st.floats(-HOUR, HOUR))
def test_the_times_lie_within_what_the_appends_allow(trips: list[tuple[float, float]], skew: float) -> None:
    clock, now = LogClock(), 100.0
    for there, back in trips:
        now += there + back
        observe(clock, now, there, back)
    narrowest = min(there + back for there, back in trips)
    found = clock.now_ms(now)
    assert found is not None
    assert abs(found / 1000 - (T + now)) <= narrowest + 0.01
    said = clock.skew_s(T + now + skew, now)
    # Never more than there is, and less only by what the appends leave open.
    assert abs(said) <= abs(skew) + 0.01
    assert said * skew >= 0
    assert abs(said) >= abs(skew) - narrowest - 0.01


def test_a_brokers_clock_that_was_set_is_followed() -> None:
    clock = LogClock()
    observe(clock, 10.0)
    observe(clock, 20.0, log=T + HOUR)
    assert abs((clock.now_ms(20.0) or 0) / 1000 - (T + 20.0 + HOUR)) < 0.02
    observe(clock, 30.0)
    assert abs(clock.skew_s(T + 30.0, 30.0)) < 0.02


def test_a_clock_that_is_off_is_shown_and_said_once() -> None:
    clock = LogClock()
    report = SkewReport(clock)
    observe(clock, 10.0)
    with capture_logs() as lines:
        report.update(T + 10.0 + MOST_SKEW_S - 0.1, 10.0)
        assert not lines
        for _ in range(3):
            report.update(T + 10.0 - HOUR, 10.0)
        assert [line["ahead_s"] for line in lines] == [-HOUR]
        assert abs(SKEW_SECONDS._value.get() + HOUR) < 0.1
        report.update(T + 10.0, 10.0)
        report.update(T + 10.0 + HOUR, 10.0)
        assert [line["ahead_s"] for line in lines] == [-HOUR, HOUR]
