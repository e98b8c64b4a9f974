from __future__ import annotations

import pytest

from chat_streams.kafka.names import Names, version_of
from chat_streams.model.errors import SettingsError
from chat_streams.runtime.settings import read_settings


@pytest.mark.parametrize("text", ["1", "2", "1000", "07"])
def test_the_version_is_the_one_of_the_settings(text: str) -> None:
    assert version_of(text) == read_settings(topics_version=text).topics_version


@pytest.mark.parametrize("text", ["", " 2", "2.0", "1_0", "+2", "\u0662", "\u00b2", "9" * 5_000, "two"])
def test_what_is_no_version_here_is_refused_by_the_settings(text: str) -> None:
    assert version_of(text) == 1
    with pytest.raises(SettingsError, match="CHAT_TOPICS_VERSION is "):
        read_settings(topics_version=text)


def test_names_of_a_version_are_those_of_no_other() -> None:
    assert not set(Names.of(1)) & set(Names.of(2))
    assert Names.of(1).incoming_messages == "incoming_messages"
