from __future__ import annotations

import resource

import pytest

from chat_streams.runtime import descriptors


def test_the_soft_limit_becomes_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1_024, 65_536)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda which, values: limits.append(values))
    assert descriptors.raise_limit() == 65_536
    assert limits[-1] == (65_536, 65_536)


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_where_it_may_not_be_raised_it_stays(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    def refuse(which: int, values: tuple[int, int]) -> None:
        raise error

    monkeypatch.setattr(resource, "getrlimit", lambda which: (1_024, 65_536))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert descriptors.raise_limit() == 1_024


def test_a_part_is_kept_back_also_of_a_small_limit() -> None:
    assert [descriptors.reserve(limit) for limit in (0, 64, 1_024, 65_536)] == [0, 16, 256, 256]
