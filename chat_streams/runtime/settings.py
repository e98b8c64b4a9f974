"""The settings of the services: environment variables with the prefix ``CHAT_`` (``docs/settings.md``)."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

import structlog
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chat_streams.model.addresses import is_loopback, split_address
from chat_streams.model.errors import SettingsError
from chat_streams.runtime import values
from chat_streams.runtime.logs import Format
from chat_streams.runtime.values import (
    AudienceList,
    Certificates,
    Collector,
    Endpoint,
    Host,
    Issuer,
    KeySet,
    LoginName,
    Origins,
    RedisNodes,
    SecretFile,
    Servers,
    TableName,
)

log = structlog.get_logger()

DAY = 24 * 3600
LOCAL: Final = "CHAT_LOCAL_"
"""The prefix of the variables of the local stack (``docker/local/layout.py``), which the services leave alone."""
_MOST: Final = 10**9
_MOST_BYTES: Final = 2**40
_MOST_SECONDS: Final = 10 * 365 * DAY

Port = Annotated[int, Field(ge=1, le=65_535)]
Count = Annotated[int, Field(ge=1, le=_MOST)]
Rate = Annotated[float, Field(gt=0, le=_MOST, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0.01, le=DAY, allow_inf_nan=False)]
"""A duration: above zero, so that what waits for it does no busy loop."""


class Settings(BaseSettings):
    """All settings, with defaults and ranges. Durations are in seconds and sizes in bytes unless noted otherwise."""

    model_config = SettingsConfigDict(env_prefix="CHAT_", extra="ignore", hide_input_in_errors=True)

    log_format: Format = "auto"
    """The format of log lines: ``json``, ``console`` (for people), or ``auto`` (JSON unless stderr is a terminal)."""
    traces: Collector | None = None
    """The URL of an OpenTelemetry collector that takes spans by OTLP over HTTP; None for no traces."""
    trace_sample: float = Field(0.001, ge=0, le=1, allow_inf_nan=False)
    """The share of messages that are traced."""

    # Engines
    kafka: Servers = "127.0.0.1:9092"
    """The bootstrap servers, ``host:port``, separated by commas."""
    kafka_tls: bool = False
    kafka_ca_file: Certificates | None = None
    """A file of CA certificates (PEM) that sign those of the brokers; None for the CAs that the system trusts."""
    kafka_user: LoginName | None = None
    """The user for SASL/SCRAM-SHA-512; None for no login."""
    kafka_password: SecretStr | None = None
    kafka_password_file: SecretFile | None = None
    redis: RedisNodes = "redis://127.0.0.1:7000"
    """The URL of any node of the cluster (``rediss://`` for TLS); ``,host:port`` adds further nodes to try."""
    redis_ca_file: Certificates | None = None
    """A file of CA certificates, as ``kafka_ca_file``."""
    redis_user: LoginName | None = None
    """The user in Redis's access control list; None for ``default``."""
    redis_password: SecretStr | None = None
    redis_password_file: SecretFile | None = None
    redis_connections: int = Field(32, ge=1, le=1_000)
    """The largest number of connections per node and process; commands wait while none is free."""
    engine_timeout: float = Field(5.0, ge=0.01, le=60, allow_inf_nan=False)
    """The timeout of one request to Redis or DynamoDB."""
    dynamodb_endpoint: Endpoint | None = None
    """The URL of DynamoDB Local; None for AWS itself."""
    history_table: TableName = "chat_history"

    # Topics
    partitions: int = Field(8, ge=1, le=10_000)
    """Partitions of each of incoming_messages, session_events and inbox_requests."""
    topics_version: int = Field(1, ge=1, le=1_000)
    """The version of those topics and their names; ``topics repartition`` creates the next one."""
    slots: int = Field(16, ge=1, le=10_000)
    """Partitions of outgoing_messages: twice the number of gateways, for rolling deploys."""
    replication: int = Field(1, ge=1, le=10)
    min_insync: int = Field(1, ge=1, le=10)
    retention: int = Field(30 * DAY, ge=60, le=_MOST_SECONDS)

    # Gateway
    gateway_host: Host = "127.0.0.1"
    gateway_port: Port = 8080
    metrics_host: Host = "127.0.0.1"
    metrics_port: Port = 8085
    """The port of the gateway's ``/metrics``, apart from ``gateway_port``, which is open to the public."""
    jwt_secret: SecretStr | None = None
    """The HS256 key of tokens, at least 32 bytes; alternatives are ``jwt_secret_file`` and ``jwks_url``."""
    jwt_secret_file: SecretFile | None = None
    jwks_url: KeySet | None = None
    """The URL of an identity provider's public keys (RS256, ES256, EdDSA); with it there is no shared key."""
    jwt_audience: AudienceList | None = None
    """Names of this service in tokens (``aud``), separated by commas; None refuses tokens that name any."""
    jwt_issuer: Issuer | None = None
    """The issuer that tokens are to name (``iss``); None for any."""
    jwt_leeway: float = Field(30.0, ge=0, le=300, allow_inf_nan=False)
    """The largest difference between the clocks of the issuer and of this machine."""
    heartbeat: Seconds = 30.0
    hello_timeout: Seconds = 10.0
    max_connections: Count = 20_000
    max_body: int = Field(64 * 1024, ge=16, le=256 * 1024)
    max_frame: int = Field(512 * 1024, ge=1024, le=2**30)
    max_frame_objects: Count = 1_000
    window: Count = 8_000
    """The largest number of messages of one connection that are forwarded and not acknowledged."""
    window_bytes: int = Field(2 * 1024 * 1024, ge=1024, le=_MOST_BYTES)
    origins: Origins | None = None
    """Origins of web pages that may connect besides the gateway's own, separated by commas; ``*`` for any."""
    send_rate: Rate = 500.0
    """Messages a second that one user may send through one gateway in the long run."""
    send_burst: Count = 5_000
    """Messages that one user may send at once, above that rate."""
    send_bytes_rate: Rate = 2 * 1024 * 1024
    """Bytes of message bodies a second that one user may send through one gateway in the long run."""
    send_bytes_burst: int = Field(16 * 1024 * 1024, ge=256 * 1024, le=_MOST_BYTES)
    connect_rate: Rate = 1.0
    """Connections a second that one user may open to one gateway in the long run."""
    connect_burst: Count = 60
    """Connections that one user may open at once, above that rate."""
    unconfirmed: Count = 2_000
    """Messages from one connection that are not yet confirmed to it; beyond that, its socket is not read."""
    produce_buffer: int = Field(64 * 1024 * 1024, ge=1024 * 1024, le=_MOST_BYTES)
    """Bytes that a gateway buffers for Kafka; beyond that, no socket is read."""
    fetch_budget: int = Field(64 * 1024 * 1024, ge=1024 * 1024, le=_MOST_BYTES)
    """Bytes of stored messages requested and not yet forwarded, over all connections of a gateway."""
    record_interval: float = Field(0.010, ge=0, le=1, allow_inf_nan=False)
    """Seconds between two flushes of a topic's records that are not full."""
    record_bytes: int = Field(512 * 1024, ge=1024, le=900_000)
    produce_timeout: Seconds = 30.0
    """Seconds after which a message that Kafka did not accept is refused; the client sends it again."""
    lease: float = Field(10.0, ge=0.1, le=DAY, allow_inf_nan=False)
    """The duration of the lease on a gateway's slot; it is renewed three times within it."""
    announce_sweep: Seconds = 300.0
    """The period in which a gateway announces all its connections again, a few at a time."""

    # Inbox
    inbox_ttl: int = Field(30 * DAY, ge=1, le=_MOST_SECONDS)
    """The time after which an inbox without activity, and a device that was not seen, is forgotten."""
    inbox_messages: Count = 100_000
    """The quota of one user in messages; beyond it, the newest go to history only."""
    inbox_bytes: int = Field(64 * 1024 * 1024, ge=1024, le=_MOST_BYTES)
    """The quota of one user in bytes."""
    retry_window: int = Field(3600, ge=1, le=_MOST_SECONDS)
    """The period in which a message that is sent again under the same id is delivered once."""
    max_devices: int = Field(16, ge=1, le=100)
    read_messages: Count = 2_000
    read_bytes: int = Field(512 * 1024, ge=1024, le=_MOST_BYTES)

    # Workers
    loss_window: float = Field(60.0, ge=1, le=DAY, allow_inf_nan=False)
    """The age of the newest writes that a Redis failover may lose: so much of the log is applied again."""
    commit_interval: Seconds = 1.0
    session_timeout: float = Field(6.0, ge=1, le=1_800, allow_inf_nan=False)
    """The time after which a dead worker loses its partitions; at least the broker's group.min.session.timeout.ms."""

    @field_validator("*", mode="before")
    @classmethod
    def _text(cls, value: Any, info: ValidationInfo) -> Any:
        # A path may have any bytes.
        is_path = values.unwrap(cls.model_fields[info.field_name or ""])[0] is Path
        return values.not_empty(value if is_path else values.decodable(value))

    @field_validator("topics_version", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        # ``kafka.names`` reads the variable by itself: what it took for 1 must not be another number here.
        if isinstance(value, str) and value.strip() and not re.fullmatch(r"[0-9]+", value, re.ASCII):
            raise ValueError("a whole number from 1 to 1,000 is wanted, in digits alone")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kafka_ca_file is not None and not self.kafka_tls:
            raise ValueError("CHAT_KAFKA_CA_FILE is of no use without CHAT_KAFKA_TLS=true")
        if self.redis_ca_file is not None and not self.redis_tls:
            raise ValueError("CHAT_REDIS_CA_FILE is of no use without rediss:// in CHAT_REDIS")
        # Without TLS, SCRAM hides the password only, all else can be read; Redis would send the password itself.
        if self.kafka_login() is not None and not self.kafka_tls and not all(map(is_loopback, self._kafka_hosts())):
            raise ValueError("CHAT_KAFKA_USER is refused without CHAT_KAFKA_TLS=true, but for a Kafka on loopback")
        hosts = [host for host, _ in self.redis_addresses]
        if self.redis_login() is not None and not self.redis_tls and not all(map(is_loopback, hosts)):
            raise ValueError("CHAT_REDIS_PASSWORD is refused without rediss:// in CHAT_REDIS, but for one on loopback")
        # Kafka creates such a topic, and refuses each write to it for ever.
        if self.min_insync > self.replication:
            raise ValueError(
                f"CHAT_MIN_INSYNC is {self.min_insync}: a number up to CHAT_REPLICATION ({self.replication}) is wanted"
            )
        if self.jwt_secret is not None or self.jwt_secret_file is not None:
            self.jwt_key()
        return self

    def _kafka_hosts(self) -> list[str]:
        return [split_address(address)[0] for address in self.kafka.split(",")]

    @property
    def redis_addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node that ``redis`` names."""
        return values.redis_addresses(self.redis)

    @property
    def redis_tls(self) -> bool:
        """True when connections to Redis use TLS."""
        return self.redis.startswith("rediss:")

    def kafka_login(self) -> tuple[str, str] | None:
        """Return user and password for Kafka, or ``None``; raises ``SettingsError`` when only one of them is set."""
        password = _secret("CHAT_KAFKA_PASSWORD", self.kafka_password, self.kafka_password_file)
        if bool(self.kafka_user) != bool(password):
            raise SettingsError("CHAT_KAFKA_USER and CHAT_KAFKA_PASSWORD (or its file) go together: one is missing")
        return (self.kafka_user, password) if self.kafka_user and password else None

    def redis_login(self) -> tuple[str | None, str] | None:
        """Return user (None: ``default``) and password for Redis; raises ``SettingsError`` for a user alone."""
        password = _secret("CHAT_REDIS_PASSWORD", self.redis_password, self.redis_password_file)
        if self.redis_user and not password:
            raise SettingsError("CHAT_REDIS_USER is set, and neither CHAT_REDIS_PASSWORD nor CHAT_REDIS_PASSWORD_FILE")
        return (self.redis_user or None, password) if password else None

    def audiences(self) -> frozenset[str]:
        """Return the names of this service in tokens."""
        return frozenset(self.jwt_audience.split(",")) if self.jwt_audience is not None else frozenset()

    def jwt_key(self) -> str:
        """Return the HS256 key; raises ``SettingsError`` when it is missing or too short to be safe (RFC 7518, 3.2)."""
        key = _secret("CHAT_JWT_SECRET", self.jwt_secret, self.jwt_secret_file)
        if key is None:
            raise SettingsError("no key for tokens: set CHAT_JWT_SECRET, CHAT_JWT_SECRET_FILE (HS256) or CHAT_JWKS_URL")
        if len(key.encode()) < 32:
            of_file = f"_FILE ({self.jwt_secret_file})" if self.jwt_secret is None else ""
            raise SettingsError(f"CHAT_JWT_SECRET{of_file} is shorter than 32 bytes: 32 or more are wanted")
        return key

    def secrets(self) -> list[str]:
        """Return what no log line may have: passwords, keys, and the queries of URLs, which may hold a key."""
        values_and_files = (
            (self.kafka_password, self.kafka_password_file),
            (self.redis_password, self.redis_password_file),
            (self.jwt_secret, self.jwt_secret_file),
        )
        found = [_secret("", value, file) for value, file in values_and_files]
        found += [urlsplit(url).query for url in (self.traces, self.jwks_url) if url is not None]
        return [secret for secret in found if secret]


def _secret(variable: str, value: SecretStr | None, file: Path | None) -> str | None:
    """Return a secret, or the content of its file without surrounding space; raises ``SettingsError``."""
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return values.read_secret(file)
    except ValueError as error:
        raise SettingsError(f"{variable}_FILE is {str(file)!r}: {error}") from error


def read_settings(**given: Any) -> Settings:
    """Return the settings of the environment, with those ``given`` in its place; raises ``SettingsError``."""
    try:
        return Settings(**given)
    except ValidationError as error:
        raise SettingsError(f"wrong setting: {values.explain(Settings, error)}") from error


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the settings of this process; raises ``SettingsError`` that names each wrong variable."""
    return read_settings()


def unknown_settings() -> list[str]:
    """Return a line for each ``CHAT_`` variable of this process that is no setting."""
    known = [values.variable(Settings, field) for field in Settings.model_fields]
    return values.unknown(os.environ, known, "CHAT_", others=[LOCAL])


def warn_of_unknown_settings() -> None:
    """Log the variables that are no settings: nothing else would tell that a name is misspelt."""
    for line in unknown_settings():
        log.warning(line)
