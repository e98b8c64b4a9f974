"""Numbers in requests: what is none is no error of the inspector."""

from __future__ import annotations

import pytest

from chat_streams.inspector.numbers import number_of
from chat_streams.inspector.pages.tail import positions


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("17", 17), ("9" * 15, 10**15 - 1)])
def test_digits_are_a_number(text: str, number: int) -> None:
    assert number_of(text) == number


@pytest.mark.parametrize("text", ["", "²", "9" * 16, "9" * 5_000, "-1", "1.0", " 1", "1\n", "١"])
def test_anything_else_is_none(text: str) -> None:
    assert number_of(text) is None
    assert positions(f"0:17,{text}:1,1:{text}") == {0: 17}
