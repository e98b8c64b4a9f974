from __future__ import annotations

import time

import click
import pytest
from rich.text import Text

from chat_streams.commands.output import Since, cell, duration, utc


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0.000 s"),
        (1_234, "1.234 s"),
        (-12, "-0.012 s"),
        (59_999, "59.999 s"),
        (60_000, "1 min 0 s"),
        (303_500, "5 min 3 s"),
        (3_600_000, "1 h 0 min"),
        (86_399_999, "23 h 59 min"),
        (90_000_000, "1 d 1 h"),
        (90 * 86_400_000, "90 d 0 h"),
    ],
)
def test_a_duration_is_shown_in_its_two_largest_units(ms: int, text: str) -> None:
    assert duration(ms) == text


def test_nothing_in_a_cell_is_markup_or_steers_the_terminal() -> None:
    shown = Text.from_markup(cell("[red]x\x1b[2J\u202e")).plain
    assert shown.startswith("[red]x")
    assert "\x1b" not in shown
    assert "\u202e" not in shown


def test_a_time_is_shown_in_utc_with_milliseconds() -> None:
    assert utc(1_769_868_120_123) == "2026-01-31T14:02:00.123Z"
    # A time that a broken clock has written is shown, and does not end the command.
    assert utc(1 << 62) == f"{1 << 62} ms"


@pytest.mark.parametrize(
    "text", ["2026-01-31T14:02:00Z", "2026-01-31T14:02:00", "2026-01-31T15:02:00+01:00", "2026-01-31 14:02"]
)
def test_since_takes_a_point_in_time(text: str) -> None:
    assert Since().convert(text, None, None) == 1_769_868_120_000


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("7d", 604_800)])
def test_since_takes_an_age(text: str, seconds: int) -> None:
    assert Since().convert("999999999d", None, None) == 0
    before = time.time()
    found = Since().convert(text, None, None) / 1000 + seconds
    assert before - 0.002 <= found <= time.time()


@pytest.mark.parametrize("text", ["", "yesterday", "5", "5 m", "-5m", "٣m"])
def test_since_refuses_what_is_neither(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Since().convert(text, None, None)
