"""Origins: which are the same, which may connect, and what a wrong entry of the setting is told."""

from __future__ import annotations

import pytest

from chat_streams.model.origins import AllowedOrigins, Origin


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://chat.test", "https://chat.test:443"),
        ("http://chat.test", "http://chat.test:80"),
        ("HTTPS://Chat.Test", "https://chat.test"),
        ("https://bücher.test", "https://xn--bcher-kva.test"),
        ("https://BÜCHER.test", "https://xn--bcher-kva.test"),
        ("http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080"),
        ("capacitor://localhost", "Capacitor://LOCALHOST"),
        ("null", "null"),
    ],
)
def test_the_same_origin_may_be_written_in_several_ways(one: str, other: str) -> None:
    assert Origin.parse(one) == Origin.parse(other)
    assert AllowedOrigins.parse(one).allows(other, "gateway.test")
    assert AllowedOrigins.parse(f"https://else.test , {other}").allows(one, "gateway.test")


@pytest.mark.parametrize(
    "origin",
    [
        *("http://chat.test", "https://chat.test:8443", "https://www.chat.test", "https://chat.test.evil.test"),
        *("https://evil.test", "null", "capacitor://localhost", "https://chat.test.", "https://chat.tes"),
        *(
            "",
            "https://",
            "https://chat.test https://evil.test",
            "https://chat.test/",
            "chat.test",
            "https://chat.test\n",
        ),
        *("https://chat.test:443:443", "https://evil@chat.test", "ionic://chat.test", "https://chat.test:65979"),
    ],
)
def test_other_origins_are_refused(origin: str) -> None:
    assert not AllowedOrigins.parse("https://chat.test").allows(origin, "gateway.test")


@pytest.mark.parametrize(
    "origin", ["null", "file://", "app://.", "tauri://localhost", "chrome-extension://abcdef", "ionic://localhost"]
)
def test_pages_of_apps_and_of_no_origin_may_be_listed(origin: str) -> None:
    assert AllowedOrigins.parse(f"https://chat.test,{origin}").allows(origin, "gateway.test")
    assert not AllowedOrigins.parse("https://chat.test").allows(origin, "gateway.test")


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("https://chat.test", "chat.test", True),
        ("https://chat.test", "Chat.Test:443", True),
        ("http://chat.test:8080", "chat.test:8080", True),
        ("http://[::1]:8080", "[::1]:8080", True),
        ("https://chat.test", "chat.test:8080", False),
        ("http://chat.test:8080", "chat.test", False),
        ("https://evil.test", "chat.test", False),
        ("null", "null", False),
        ("capacitor://localhost", "localhost", False),
        ("https://chat.test", "", False),
        ("https://chat.test", "chat.test/@evil", False),
    ],
)
def test_pages_of_the_gateways_own_host_may_connect(origin: str, host: str, own: bool) -> None:
    assert AllowedOrigins([]).allows(origin, host) == own
    assert AllowedOrigins.parse("https://else.test").allows(origin, host) == own


@pytest.mark.parametrize("origin", [None, "https://chat.test", "null", "no origin at all"])
def test_a_star_allows_any(origin: str | None) -> None:
    assert AllowedOrigins.parse("https://else.test, *").allows(origin, "gateway.test")


def test_a_request_without_an_origin_comes_from_no_page() -> None:
    assert AllowedOrigins([]).allows(None, "gateway.test")


@pytest.mark.parametrize(
    "entry",
    [
        *("chat.test", "https://chat.test/", "https://chat.test/path", "https://", "https://user@chat.test", ""),
        *("https://*.chat.test", "https://chat.test:99999", "https://chat.test:x", "https://[::1", "https://a b"),
        *("Null", "//chat.test", "https//chat.test", "https://" + "a" * 70 + ".test"),
    ],
)
def test_a_wrong_entry_is_named_with_what_would_do(entry: str) -> None:
    with pytest.raises(ValueError, match="is no origin") as caught:
        AllowedOrigins.parse(f"https://else.test,{entry}")
    assert repr(entry[:60]) in str(caught.value)
    assert "https://chat.example" in str(caught.value)
