from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from chat_streams.model.errors import SettingsError
from chat_streams.runtime import settings
from chat_streams.runtime.settings import Settings

KEY = "k" * 32


@pytest.fixture(autouse=True)
def _only_these(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CHAT_{name.upper()}", raising=False)
    settings.settings.cache_clear()
    yield
    settings.settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "many"),
        ("PARTITIONS", "0"),
        ("SLOTS", "1.5"),
        ("GATEWAY_PORT", "65536"),
        ("RECORD_INTERVAL", "-0.01"),
        ("RECORD_BYTES", "1000000"),
        ("MAX_BODY", ""),
        ("WINDOW", "0"),
        ("LEASE", "0"),
        ("MAX_DEVICES", "101"),
        ("LOSS_WINDOW", "soon"),
        ("REDIS", "127.0.0.1:7000"),
        ("REDIS", "redis://127.0.0.1:7000,redis://127.0.0.1:7001"),
        ("REDIS", "redis://:sesame@127.0.0.1:7000"),
        ("KAFKA_CA_FILE", "/nowhere"),
        ("REDIS_CA_FILE", __file__),
    ],
)
def test_a_wrong_value_is_an_error_naming_the_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"CHAT_{name}", value)
    with pytest.raises(SettingsError) as caught:
        settings.settings()
    text = str(caught.value)
    assert f"CHAT_{name}: " in text
    assert text.count("CHAT_") == 1
    assert "\n" not in text


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_SLOTS", "none")
    monkeypatch.setenv("CHAT_HEARTBEAT", "0")
    with pytest.raises(SettingsError) as caught:
        settings.settings()
    assert "CHAT_SLOTS: " in str(caught.value)
    assert "CHAT_HEARTBEAT: " in str(caught.value)


def test_variables_are_read_and_others_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_PARTITIONS", "12")
    monkeypatch.setenv("CHAT_NO_SUCH_KNOB", "1")
    monkeypatch.setenv("SLOTS", "3")
    found = settings.settings()
    assert (found.partitions, found.slots) == (12, Settings().slots)
    assert settings.settings() is found


def test_a_wrong_value_can_be_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_PARTITIONS", "x")
    with pytest.raises(SettingsError):
        settings.settings()
    monkeypatch.setenv("CHAT_PARTITIONS", "3")
    assert settings.settings().partitions == 3


def test_no_key_for_tokens_says_what_to_set() -> None:
    with pytest.raises(SettingsError, match=r"CHAT_JWT_SECRET.*CHAT_JWT_SECRET_FILE.*CHAT_JWKS_URL"):
        Settings().jwt_key()


@pytest.mark.parametrize("length", [0, 1, 31])
def test_a_short_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    secret = "sesame" * 6
    monkeypatch.setenv("CHAT_JWT_SECRET", secret[:length])
    with pytest.raises(SettingsError, match="CHAT_JWT_SECRET is shorter than 32 bytes") as caught:
        settings.settings().jwt_key()
    assert "sesame" not in str(caught.value)


def test_the_length_of_a_key_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_JWT_SECRET", "\u00e4" * 16)
    assert settings.settings().jwt_key() == "\u00e4" * 16


def test_a_key_is_not_shown_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_JWT_SECRET", KEY)
    assert settings.settings().jwt_key() == KEY
    assert KEY not in repr(settings.settings())


def test_the_key_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv("CHAT_JWT_SECRET_FILE", str(file))
    with pytest.raises(SettingsError, match=r"CHAT_JWT_SECRET_FILE \(.*/key\) cannot be read: No such file"):
        settings.settings().jwt_key()
    file.write_text("short\n")
    with pytest.raises(SettingsError, match=r"CHAT_JWT_SECRET_FILE \(.*/key\) is shorter"):
        settings.settings().jwt_key()
    file.write_text(KEY + "\n")
    file.chmod(stat.S_IRUSR)
    assert settings.settings().jwt_key() == KEY


@pytest.mark.parametrize(
    ("variables", "text"),
    [
        ({"KAFKA_USER": "alice"}, "CHAT_KAFKA_PASSWORD"),
        ({"KAFKA_PASSWORD": "sesame"}, "CHAT_KAFKA_USER"),
        ({"KAFKA_USER": "alice", "KAFKA_PASSWORD_FILE": "/nowhere"}, "/nowhere"),
        ({"REDIS_USER": "alice"}, "CHAT_REDIS_PASSWORD"),
        ({"KAFKA": "kafka:9092", "KAFKA_USER": "alice", "KAFKA_PASSWORD": "sesame"}, "CHAT_KAFKA_TLS"),
        ({"KAFKA": "127.0.0.1:1,127.evil.test:1", "KAFKA_USER": "a", "KAFKA_PASSWORD": "sesame"}, "CHAT_KAFKA_TLS"),
        ({"REDIS": "redis://127.0.0.1:1,b:1", "REDIS_PASSWORD": "sesame"}, "rediss://"),
    ],
)
def test_a_login_is_whole_and_not_on_an_open_wire(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], text: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"CHAT_{name}", value)
    with pytest.raises(SettingsError) as caught:
        settings.settings()
    assert text in str(caught.value)
    assert "sesame" not in str(caught.value) + str(caught.value.__cause__)


def test_on_loopback_a_login_needs_no_tls_and_with_it_any_place_will_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text("sesame\n")
    monkeypatch.setenv("CHAT_KAFKA_USER", "alice")
    monkeypatch.setenv("CHAT_KAFKA_PASSWORD_FILE", str(file))
    monkeypatch.setenv("CHAT_REDIS_PASSWORD", "open")
    assert settings.settings().kafka_login() == ("alice", "sesame")
    assert settings.settings().redis_login() == (None, "open")
    monkeypatch.setenv("CHAT_KAFKA", "kafka.test:9094")
    monkeypatch.setenv("CHAT_KAFKA_TLS", "true")
    monkeypatch.setenv("CHAT_REDIS", "rediss://redis.test:6379")
    settings.settings.cache_clear()
    assert settings.settings().redis_tls
