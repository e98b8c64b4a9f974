from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from chat_streams.model.text import escaped


def test_what_steers_a_terminal_is_escaped() -> None:
    assert escaped("a\nb\r\tc") == r"a\nb\r\tc"
    assert escaped("\x1b[2J\x9b2J\x07\x7f") == r"\u001b[2J\u009b2J\u0007\u007f"
    assert escaped("\u202etxt\u2066\u200f\u061c\u2028") == r"\u202etxt\u2066\u200f\u061c\u2028"
    assert escaped("\ud83d") == r"\ud83d"
    assert escaped("\U000e0001") == r"\udb40\udc01"


def test_words_of_every_script_and_emoji_stay() -> None:
    for text in (
        "gr\u00fc\u00df",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u2764\ufe0f",
        "\\n",
        "",
    ):
        assert escaped(text) == text


def test_what_is_to_be_kept_stays() -> None:
    assert escaped("a\nb\tc", keep="\n") == "a\nb\\tc"


@given(st.text())
def test_the_text_is_one_line_without_control_characters(text: str) -> None:
    shown = escaped(text)
    assert shown.splitlines() == ([shown] if shown else [])
    assert not {unicodedata.category(character) for character in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(character) for character in shown} & {
        "LRE",
        "RLE",
        "LRO",
        "RLO",
        "PDF",
        "LRI",
        "RLI",
        "FSI",
        "PDI",
    }


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_stays_the_same_json(text: str) -> None:
    assert json.loads(escaped(json.dumps(text, ensure_ascii=False))) == text
