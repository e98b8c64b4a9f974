"""The layout of the local stack: its data folder, its ports, and the environment of its processes."""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import socket
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chat_streams.model.errors import SettingsError
from chat_streams.runtime.settings import LOCAL, Settings, read_settings, unknown_settings
from chat_streams.runtime.values import explain, unknown
from chat_streams.runtime.values import variable as setting_variable

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
PREFIX = LOCAL
INSTANCE_STEP = 10
"""The distance between the ports of two instances: instance n has the first one's port plus n - 1 times this."""

_BLOCK = 50
# Offsets within a block of ports, with room for three Redis nodes, five services and three instances of each service.
_OFFSETS = {
    "kafka": 1,
    "kafka_controller": 2,
    "dynamodb": 3,
    "redis": 4,
    "redis_bus": 7,
    "gateway": 10,
    "messaging_web": 11,
    "notification_web": 12,
    "history_web": 13,
    "inspector": 14,
    "gateway_metrics": 15,
}
# Kept open for the life of the process: the process that binds the first port of a block owns the block.
_owned_blocks: list[socket.socket] = []

Port = Annotated[int, Field(ge=1024, le=65_535)]


def _heap(value: str) -> str:
    """Check a size for Java that is enough for Kafka, and that any 64-bit machine can promise."""
    found = re.fullmatch(r"([0-9]{1,6})([mMgG])", value, re.ASCII)
    megabytes = int(found[1]) * (1024 if found[2] in "gG" else 1) if found else 0
    if not 128 <= megabytes <= 64 * 1024:
        raise ValueError("a size from 128m to 64g is wanted, in digits and m or g")
    return value


class StackError(Exception):
    """An error for the user; its text is complete and needs no traceback."""


class Layout(BaseSettings):
    """The data folder and the TCP ports, all of them on 127.0.0.1; each has its variable ``CHAT_LOCAL_<FIELD>``."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True)

    data: Path = Path(".local/data")
    """The data folder. A relative path starts at the repository's root; it is absolute once the layout exists."""
    kafka: Port = 9092
    kafka_controller: Port = 9093
    kafka_heap: Annotated[str, AfterValidator(_heap)] = "1g"
    """The heap of Kafka, as the value of Java's -Xmx."""
    redis: Port = 7000
    redis_bus: Port = 17000
    dynamodb: Port = 8000
    gateway: Port = 8080
    messaging_web: Port = 8081
    notification_web: Port = 8082
    history_web: Port = 8083
    inspector: Port = 8084
    gateway_metrics: Port = 8085

    @field_validator("data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        try:
            path = (ROOT / value.expanduser()).resolve()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"the path of a folder is wanted: {error}") from None
        nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
        if not nearest.is_dir():
            raise ValueError(f"the path of a folder is wanted: {nearest} is none")
        return path

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for port, count in Counter(getattr(self, name) for name in _OFFSETS).items():
            if count > 1:
                names = " and ".join(variable(name) for name in _OFFSETS if getattr(self, name) == port)
                raise ValueError(f"{names} are the same port, {port}: change one")
        return self

    @classmethod
    def from_settings(cls) -> Self:
        """Return the layout of ``make up``: the defaults, each replaced by its variable where that is set.

        Raises ``StackError`` naming each variable with an invalid value, or a character that a path may not have.
        """
        check_path("the checkout", ROOT, separators=":")
        try:
            layout = cls()
        except ValidationError as error:
            raise StackError(f"wrong setting: {explain(cls, error)}") from error
        check_path(variable("data"), layout.data, separators="*?[")
        return layout

    @classmethod
    def free(cls, data: Path) -> Self:
        """Return a layout of free ports for one test run, reserved until this process exits.

        The ports are below the ephemeral range, so no outgoing connection can take one while a part is restarting.
        Raises ``StackError`` when no block of free ports is found.
        """
        starts = list(range(20_000, 32_000, _BLOCK))
        random.shuffle(starts)
        for start in starts:
            guard = socket.socket()
            try:
                guard.bind((HOST, start))
            except OSError:
                guard.close()
                continue
            if all(is_free(port) for port in range(start + 1, start + _BLOCK)):
                _owned_blocks.append(guard)
                values: dict[str, Any] = {name: start + offset for name, offset in _OFFSETS.items()}
                return cls(data=data, kafka_heap="512m", **values)
            guard.close()
        raise StackError(f"there are no {_BLOCK} free ports in a row between 20000 and 32000")

    @property
    def logs(self) -> Path:
        """The folder of all logs."""
        return self.data / "logs"

    @property
    def secret_file(self) -> Path:
        """The file with the key that signs tokens (64 hex digits)."""
        return self.data / "jwt-secret"


def check_path(what: str, path: Path, separators: str = "") -> None:
    """Raise ``StackError`` if a path has a character that some part of the stack cannot take.

    Those are control characters, bytes that are no UTF-8, and ``separators``: the checkout may have no colon, at which
    virtual environments and class paths of Java end a path; the data folder no wildcard, since Redis would look for
    files that match the path of its configuration, find none and start with its defaults.
    """
    for character in str(path):
        if character in separators or unicodedata.category(character) in ("Cc", "Cs"):
            raise StackError(f"{what} is {str(path)!r}: a path without {character!r} is wanted, which is not supported")


def variable(field: str) -> str:
    """Return the environment variable that sets a field of ``Layout``."""
    return setting_variable(Layout, field)


def unknown_variables() -> list[str]:
    """Return a line for each ``CHAT_`` variable, of the stack or of its services, that is no setting."""
    return unknown_settings() + unknown(os.environ, map(variable, Layout.model_fields), PREFIX)


def is_free(port: int) -> bool:
    """Return whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # Servers set it, too: without it, connections in TIME_WAIT make the port of a stopped server look busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def base_environment() -> dict[str, str]:
    """Return this process's environment without the variables that would lead a client off the loopback interface."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
    }


def service_environment(layout: Layout) -> dict[str, str]:
    """Return the variables a service or a command of ``chat_streams`` needs, besides ``base_environment``."""
    return {
        "CHAT_KAFKA": f"{HOST}:{layout.kafka}",
        "CHAT_REDIS": f"redis://{HOST}:{layout.redis}",
        "CHAT_DYNAMODB_ENDPOINT": f"http://{HOST}:{layout.dynamodb}",
        "CHAT_GATEWAY_HOST": HOST,
        "CHAT_GATEWAY_PORT": str(layout.gateway),
        "CHAT_METRICS_HOST": HOST,
        "CHAT_METRICS_PORT": str(layout.gateway_metrics),
        "CHAT_JWT_SECRET_FILE": str(layout.secret_file),
        # DynamoDB Local takes any credentials; the user's own credential files must not be read.
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONUNBUFFERED": "1",
        # "make logs" is for people.
        "CHAT_LOG_FORMAT": os.environ.get("CHAT_LOG_FORMAT", "console"),
    }


def check_services(layout: Layout) -> None:
    """Check the settings that the services of a stack would get; raises ``StackError`` before any of them starts."""
    own = service_environment(layout)
    given = {field: own[name] for field in Settings.model_fields if (name := setting_variable(Settings, field)) in own}
    try:
        read_settings(**given)
    except SettingsError as error:
        raise StackError(str(error)) from error


def create_secret(layout: Layout) -> None:
    """Create the key that signs tokens, readable by this user only; an existing one is kept.

    Raises ``StackError`` when the data folder, which this is the first to use, cannot be written.
    """
    try:
        if layout.secret_file.exists():
            return
        layout.data.mkdir(parents=True, exist_ok=True)
        unfinished = layout.data / f"jwt-secret.{os.getpid()}"
        with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        # Unlike a rename, a link never replaces the key that another process has made meanwhile.
        with contextlib.suppress(FileExistsError):
            layout.secret_file.hardlink_to(unfinished)
        unfinished.unlink()
    except OSError as error:
        raise StackError(
            f"{variable('data')} is {str(layout.data)!r}: a folder that can be written is wanted: {error.strerror}"
        ) from error
