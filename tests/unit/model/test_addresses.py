from __future__ import annotations

import pytest

from chat_streams.model.addresses import is_host, is_loopback, join_address, split_address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("kafka:9092", "kafka", 9092),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[::1]:65535", "::1", 65_535),
        ("[fe80::1%eth0]:9", "fe80::1%eth0", 9),
        ("my_kafka.example.:7", "my_kafka.example.", 7),
    ],
)
def test_an_address_is_split_and_joined_again(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)
    assert join_address(host, port) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "x:", ":1", "x:0", "x:65536", "x:-1", "x: 1", "x:1\n", "::1", "::1:9092", "[::1]", "[x]:1", "[]:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no host:port"):
        split_address(text)


def test_a_host_is_a_name_or_an_address_without_brackets() -> None:
    assert all(map(is_host, ["a", "a-b.c", "10.0.0.1", "::", "::1", "2001:db8::1", "b\u00fccher.example"]))
    assert not any(
        map(is_host, ["", ".", "a..b", "-a", "a b", "[::1]", ":::", "a:1", "a/b", "a@b", "x" * 64, "a." * 127 + "aa"])
    )


def test_loopback_is_of_either_protocol() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.9.9.9", "::1"]))
    assert not any(map(is_loopback, ["", "10.0.0.1", "::", "::2", "127.evil.test", "localhost.evil.test"]))
