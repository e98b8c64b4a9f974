from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chat_streams.model.position import MAX_GENERATION, MAX_INDEX, MAX_OFFSET, OFFSET_BITS, ORIGIN, Position

# Small numbers too, so that digits of different lengths meet in one pair.
numbers = st.one_of(st.integers(0, 120), st.integers(0, 1 << 32), st.integers(0, MAX_OFFSET))
pairs = st.tuples(numbers, st.one_of(st.integers(0, 120), st.integers(0, MAX_INDEX)))
addresses = st.tuples(st.integers(1, MAX_GENERATION), numbers, st.integers(0, MAX_INDEX))

hypothesis = settings(deadline=None, max_examples=200)


@given(pairs, pairs)
@example((9, 0), (10, 0))
@example((1, 9), (1, 10))
@example(((1 << 53), 0), ((1 << 53) + 1, 0))  # equal as doubles
@hypothesis
def test_order_is_that_of_pairs_of_integers(a: tuple[int, int], b: tuple[int, int]) -> None:
    first, second = (Position.parse(f"{entry}-{index}") for entry, index in (a, b))
    assert (first < second, first == second, first > second) == (a < b, a == b, a > b)


@given(addresses)
@hypothesis
def test_a_position_survives_its_text(address: tuple[int, int, int]) -> None:
    generation, offset, index = address
    position = Position.of(generation, offset, index)
    assert (position.generation, position.offset, position.index) == address
    assert str(position) == f"{generation * 2**OFFSET_BITS + offset}-{index}"
    assert Position.parse(str(position)) == position


@given(addresses, addresses)
@hypothesis
def test_order_follows_generation_then_offset_then_index(a: tuple[int, int, int], b: tuple[int, int, int]) -> None:
    assert (Position.of(*a) < Position.of(*b)) == (a < b)


@given(addresses, addresses)
@example((1, 0, 0), (1, 0, 0))
@example((2, 0, 0), (1, MAX_OFFSET, MAX_INDEX))
@hypothesis
def test_what_is_before_a_record_is_below_it_and_above_all_earlier_ones(
    a: tuple[int, int, int], b: tuple[int, int, int]
) -> None:
    generation, offset, _ = a
    before = Position.before(generation, offset)
    assert before < Position.of(generation, offset, 0)
    other = Position.of(*b)
    assert (other <= before) == (other < Position.of(generation, offset, 0))
    assert Position.parse(str(before)) == before


def test_before_the_first_message_of_all_is_the_origin() -> None:
    assert Position.before(1, 0) == ORIGIN


def test_every_message_is_above_the_origin() -> None:
    assert Position.of(1, 0, 0) > ORIGIN
    assert Position.parse("0-0") == ORIGIN
    assert ORIGIN.generation == 0


def test_the_highest_position_is_a_valid_stream_id() -> None:
    highest = Position.of(MAX_GENERATION, MAX_OFFSET, MAX_INDEX)
    assert highest.entry < 1 << 64
    assert Position.parse(str(highest)) == highest


@pytest.mark.parametrize(
    "address",
    [
        (0, 0, 0),
        (-1, 0, 0),
        (MAX_GENERATION + 1, 0, 0),
        (1, -1, 0),
        (1, MAX_OFFSET + 1, 0),
        (1, 0, -1),
        (1, 0, MAX_INDEX + 1),
    ],
)
def test_a_part_out_of_range_is_refused(address: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        Position.of(*address)


@pytest.mark.parametrize(
    "text",
    [
        *("", "-", "1", "1-", "-1", "1-0-0", "-1-0", "1--0", "+1-0", "1-+0"),
        *("01-0", "1-00", "00-0", "1-01"),
        *(" 1-0", "1-0 ", "1-0\n", "1\n-0", "1 - 0", "1-0\0"),
        *("1_0-0", "1.0-0", "1e3-0", "0x1-0", "a-0", "1-b"),
        *("\uff11-0", "\u0661-0", "1\u2212" + "0"),
        *("18446744073709551616-0", "99999999999999999999-0", "1-4294967296", "1-9999999999", "9" * 5000 + "-0"),
    ],
)
def test_only_the_canonical_text_is_a_position(text: str) -> None:
    with pytest.raises(ValueError, match="is not a position"):
        Position.parse(text)


@given(st.text("0123456789-\n +", max_size=8))
@hypothesis
def test_one_position_has_one_text(text: str) -> None:
    try:
        position = Position.parse(text)
    except ValueError:
        return
    assert str(position) == text
