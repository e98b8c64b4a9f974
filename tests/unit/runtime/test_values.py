from __future__ import annotations

import pytest

from chat_streams.runtime.settings import Settings
from chat_streams.runtime.values import SHOWN, UNKNOWN, shown, unknown, variable, wanted

KNOWN = ["CHAT_SLOTS", "CHAT_WINDOW", "CHAT_WINDOW_BYTES"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x", "'x'"),
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        ("\u202ex", r"'\u202ex'"),
        ("redis://alice:ses@me@host:1", "'\u2026@host:1'"),
        ("https://host/keys?key=sesame&x", "'https://host/keys?\u2026'"),
        (3, "'3'"),
    ],
)
def test_a_value_is_shown_escaped_and_without_what_may_be_secret(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_long_value_is_cut() -> None:
    assert len(shown("x" * 10_000)) < SHOWN + 5


def test_each_setting_says_what_it_takes() -> None:
    assert wanted(Settings.model_fields["slots"]) == "a whole number from 1 to 10,000"
    assert wanted(Settings.model_fields["log_format"]) == "auto, json or console"
    assert variable(Settings, "slots") == "CHAT_SLOTS"


def test_an_unknown_variable_is_named_with_the_nearest_one() -> None:
    names = ["CHAT_SLOT", "CHAT_WINDOWS_BYTE", "CHAT_ZZ", "CHAT_SLOTS", "CHAT_LOCAL_X", "HOME", "SLOTS"]
    assert unknown(names, KNOWN, "CHAT_", others=["CHAT_LOCAL_"]) == [
        "CHAT_SLOT is no setting, and is ignored: is CHAT_SLOTS meant?",
        "CHAT_WINDOWS_BYTE is no setting, and is ignored: is CHAT_WINDOW_BYTES meant?",
        "CHAT_ZZ is no setting, and is ignored: docs/settings.md has all",
    ]


def test_not_more_than_some_unknown_variables_are_named() -> None:
    assert len(unknown([f"CHAT_{number}" for number in range(1_000)], KNOWN, "CHAT_")) == UNKNOWN
