from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import AfterValidator

from chat_streams.model.errors import SettingsError
from chat_streams.runtime import settings
from chat_streams.runtime.settings import Settings
from chat_streams.runtime.values import is_secret, unwrap, wanted
from tests.unit.runtime.wrong_values import CASES, check_line, make_files, wrong_values

KEY = "k" * 32


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(autouse=True)
def _only_these(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"CHAT_{name.upper()}", raising=False)
    settings.settings.cache_clear()
    yield
    settings.settings.cache_clear()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("PARTITIONS", "0", "a whole number from 1 to 10,000 is wanted"),
        ("RECORD_INTERVAL", "-0.01", "a number from 0 to 1 is wanted"),
        ("SEND_RATE", "0", "a number above 0 to 1,000,000,000 is wanted"),
        ("KAFKA_TLS", "maybe", "true or false is wanted"),
        ("LOG_FORMAT", "xml", "auto, json or console is wanted"),
        ("REDIS", "127.0.0.1:7000", "redis://host:port"),
        ("KAFKA_CA_FILE", "/nowhere", "it cannot be read: No such file or directory"),
        ("REDIS_CA_FILE", __file__, "it holds none"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_is_wanted(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, wanted: str
) -> None:
    monkeypatch.setenv(f"CHAT_{name}", value)
    with pytest.raises(SettingsError) as caught:
        settings.settings()
    assert f"CHAT_{name} is {value!r}: " in str(caught.value)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_wrong_value_of_each_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, Path], name: str
) -> None:
    field = Settings.model_fields[name]
    found = [value for case in CASES for value in wrong_values(field, case, files)]
    assert len(found) > 2
    for value in found:
        monkeypatch.setenv(f"CHAT_{name.upper()}", value)
        with pytest.raises(SettingsError) as caught:
            settings.settings()
        check_line(str(caught.value), f"CHAT_{name.upper()}", value, is_secret(field))


def test_each_text_setting_but_passwords_has_a_check_of_its_own() -> None:
    unchecked = {
        name
        for name, field in Settings.model_fields.items()
        if unwrap(field)[0] is str and not any(isinstance(each, AfterValidator) for each in unwrap(field)[1])
    }
    assert unchecked == set()


def test_all_numbers_are_bounded_on_both_sides() -> None:
    for name, field in Settings.model_fields.items():
        if unwrap(field)[0] in (int, float):
            text = wanted(field)
            assert re.search(r"(from|above) [0-9.,]+ to [0-9.,]+$", text), f"{name}: {text}"


def test_all_wrong_values_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_SLOTS", "none")
    monkeypatch.setenv("CHAT_HEARTBEAT", "0")
    with pytest.raises(SettingsError) as caught:
        settings.settings()
    assert "CHAT_SLOTS is 'none': " in str(caught.value)
    assert "CHAT_HEARTBEAT is '0': " in str(caught.value)


def test_variables_are_read_and_others_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_PARTITIONS", "12")
    monkeypatch.setenv("CHAT_NO_SUCH_KNOB", "1")
    monkeypatch.setenv("SLOTS", "3")
    found = settings.settings()
    assert (found.partitions, found.slots) == (12, Settings().slots)
    assert settings.settings() is found


def test_unknown_variables_are_named_with_the_nearest_setting_and_those_of_the_stack_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CHAT_PARTITION", "12")
    monkeypatch.setenv("CHAT_LOCAL_DATA", "x")
    monkeypatch.setenv("CHAT_SLOTS", "3")
    assert settings.unknown_settings() == ["CHAT_PARTITION is no setting, and is ignored: is CHAT_PARTITIONS meant?"]


def test_a_wrong_value_can_be_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_PARTITIONS", "x")
    with pytest.raises(SettingsError):
        settings.settings()
    monkeypatch.setenv("CHAT_PARTITIONS", "3")
    assert settings.settings().partitions == 3


def test_no_key_for_tokens_says_what_to_set() -> None:
    with pytest.raises(SettingsError, match=r"CHAT_JWT_SECRET.*CHAT_JWT_SECRET_FILE.*CHAT_JWKS_URL"):
        Settings().jwt_key()


@pytest.mark.parametrize("length", [1, 31])
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


def test_the_key_is_read_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    monkeypatch.setenv("CHAT_JWT_SECRET_FILE", str(file))
    with pytest.raises(SettingsError, match=r"CHAT_JWT_SECRET_FILE is '.*/key': .* cannot be read: No such file"):
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
        ({"MIN_INSYNC": "2"}, "CHAT_MIN_INSYNC is 2: a number up to CHAT_REPLICATION (1) is wanted"),
        ({"KAFKA": "[::2]:1", "KAFKA_USER": "a", "KAFKA_PASSWORD": "sesame"}, "CHAT_KAFKA_TLS"),
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


@pytest.mark.parametrize("value", ["::1", "[::1]", "::", "127.0.0.1", "localhost", "chat.example.", "fe80::1%lo"])
def test_what_is_listened_on_may_be_any_address(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CHAT_GATEWAY_HOST", value)
    monkeypatch.setenv("CHAT_METRICS_HOST", value)
    assert {settings.settings().gateway_host, settings.settings().metrics_host} == {value.strip("[]")}


def test_addresses_of_engines_may_be_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KAFKA", "[::1]:9092, kafka-2:9093")
    monkeypatch.setenv("CHAT_REDIS", "redis://[::1]:7000,[::1]:7001,b:7002")
    monkeypatch.setenv("CHAT_DYNAMODB_ENDPOINT", "http://[::1]:8000")
    monkeypatch.setenv("CHAT_TRACES", "http://[::1]:4318/v1/traces")
    monkeypatch.setenv("CHAT_JWKS_URL", "https://[::1]/keys")
    found = settings.settings()
    assert found.kafka == "[::1]:9092,kafka-2:9093"
    assert found.redis_addresses == [("::1", 7000), ("::1", 7001), ("b", 7002)]


@pytest.mark.parametrize("url", ["redis://a", "rediss://[::1]", "redis://a:1,b:2"])
def test_the_first_node_of_redis_may_leave_out_the_port(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CHAT_REDIS", url)
    assert settings.settings().redis_addresses[0][1] in (6379, 1)


def test_secrets_are_those_of_variables_files_and_queries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("from a file\n")
    monkeypatch.setenv("CHAT_JWT_SECRET", KEY)
    monkeypatch.setenv("CHAT_REDIS_PASSWORD_FILE", str(file))
    monkeypatch.setenv("CHAT_KAFKA_USER", "alice")
    monkeypatch.setenv("CHAT_KAFKA_PASSWORD", "sesame")
    monkeypatch.setenv("CHAT_TRACES", "http://host/v1/traces?key=1")
    monkeypatch.setenv("CHAT_JWKS_URL", "http://host/keys?key=2")
    found = settings.settings()
    assert sorted(found.secrets()) == sorted(["from a file", KEY, "sesame", "key=1", "key=2"])
    of_type = [name for name, field in Settings.model_fields.items() if is_secret(field)]
    assert len(of_type) == 3, "secrets() has all"
