"""Every knob of the services, with its unit: environment variables with the prefix ``CHAT_``."""

from __future__ import annotations

import re
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from chat_streams.model.errors import SettingsError
from chat_streams.runtime.logs import Format

DAY = 24 * 3600


class Settings(BaseSettings):
    """Times are in seconds and sizes in bytes unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="CHAT_", extra="ignore", hide_input_in_errors=True)

    log_format: Format = "auto"
    """``json``, ``console`` (to be read by people), or ``auto``: JSON unless stderr is a terminal."""
    traces: str | None = None
    """Where a collector of OpenTelemetry takes spans by OTLP over HTTP; None for no traces."""
    trace_sample: float = Field(0.001, ge=0, le=1)
    """The share of messages that leave a trace."""

    # Engines
    kafka: str = "127.0.0.1:9092"
    """Bootstrap servers, ``host:port`` with commas."""
    kafka_tls: bool = False
    kafka_ca_file: Path | None = None
    """Certificates in PEM, one of which signed the brokers'; None for those the system trusts."""
    kafka_user: str | None = None
    """By SASL/SCRAM-SHA-512; None for nobody in particular."""
    kafka_password: SecretStr | None = None
    kafka_password_file: Path | None = None
    redis: str = "redis://127.0.0.1:7000"
    """The URL of any node of the cluster, ``rediss://`` for TLS; more, in case that one is away, as ``,host:port``."""
    redis_ca_file: Path | None = None
    """As ``kafka_ca_file``."""
    redis_user: str | None = None
    """Of Redis's access control list; None for its user ``default``."""
    redis_password: SecretStr | None = None
    redis_password_file: Path | None = None
    redis_connections: int = Field(32, ge=1, le=1_000)
    """Per node and process; who finds none free waits."""
    engine_timeout: float = Field(5.0, gt=0, le=60)
    """One request to Redis or DynamoDB."""
    dynamodb_endpoint: str | None = None
    """None for AWS itself."""
    history_table: str = "chat_history"

    # Topics
    partitions: int = Field(8, ge=1, le=10_000)
    """Of incoming_messages, session_events and inbox_requests alike."""
    topics_version: int = Field(1, ge=1, le=1_000)
    """Of those topics and their names; the next one is made by ``topics repartition``."""
    slots: int = Field(16, ge=1, le=10_000)
    """Partitions of outgoing_messages: twice the number of gateways, for rolling deploys."""
    replication: int = Field(1, ge=1, le=10)
    min_insync: int = Field(1, ge=1, le=10)
    retention: int = Field(30 * DAY, ge=60)

    # Gateway
    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(8080, ge=1, le=65_535)
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(8085, ge=1, le=65_535)
    """Of ``/metrics`` of the gateway, whose own port is open to everyone."""
    jwt_secret: SecretStr | None = None
    """HS256 key, at least 32 bytes; or the file, or the JWKS URL."""
    jwt_secret_file: Path | None = None
    jwks_url: str | None = None
    heartbeat: float = Field(30.0, gt=0)
    hello_timeout: float = Field(10.0, gt=0)
    max_connections: int = Field(20_000, ge=1)
    max_body: int = Field(64 * 1024, ge=16, le=256 * 1024)
    max_frame: int = Field(512 * 1024, ge=1024)
    max_frame_objects: int = Field(1_000, ge=1)
    window: int = Field(8_000, ge=1)
    """Messages forwarded and not acknowledged, a connection."""
    window_bytes: int = Field(2 * 1024 * 1024, ge=1024)
    origins: str | None = None
    """Of web pages that may connect besides those of the gateway's own host, with commas; ``*`` for any."""
    send_rate: float = Field(500.0, gt=0)
    """Messages a second that one user may send through one gateway in the long run."""
    send_burst: int = Field(5_000, ge=1)
    """And at once."""
    send_bytes_rate: float = Field(2 * 1024 * 1024, gt=0)
    """Bytes of bodies, likewise."""
    send_bytes_burst: int = Field(16 * 1024 * 1024, ge=256 * 1024)
    connect_rate: float = Field(1.0, gt=0)
    """Connections a second that one user may open to one gateway in the long run."""
    connect_burst: int = Field(60, ge=1)
    """And at once."""
    unconfirmed: int = Field(2_000, ge=1)
    """Messages of one connection that are not yet confirmed to it; past it, its socket is not read."""
    produce_buffer: int = Field(64 * 1024 * 1024, ge=1024 * 1024)
    """Bytes a gateway holds for Kafka; past it, no socket is read."""
    fetch_budget: int = Field(64 * 1024 * 1024, ge=1024 * 1024)
    """Bytes of stored messages asked for and not yet forwarded, over all connections of a gateway."""
    record_interval: float = Field(0.010, ge=0, le=1)
    """Between two times that records of a topic leave a gateway while they are not full."""
    record_bytes: int = Field(512 * 1024, ge=1024, le=900_000)
    produce_timeout: float = Field(30.0, gt=0)
    """After which a message that Kafka did not take is refused, to be sent again."""
    lease: float = Field(10.0, gt=0)
    """Of a gateway's slot; renewed three times in it."""
    announce_sweep: float = Field(300.0, gt=0)
    """In which a gateway announces all its connections again, bit by bit."""

    # Inbox
    inbox_ttl: int = Field(30 * DAY, ge=1)
    """An inbox nobody touched, and a device unseen, that long is forgotten."""
    inbox_messages: int = Field(100_000, ge=1)
    """Quota of one user; past it, the newest go to history only."""
    inbox_bytes: int = Field(64 * 1024 * 1024, ge=1024)
    """Likewise."""
    retry_window: int = Field(3600, ge=1)
    """In which a message sent again under its id is delivered once."""
    max_devices: int = Field(16, ge=1, le=100)
    read_messages: int = Field(2_000, ge=1)
    read_bytes: int = Field(512 * 1024, ge=1024)

    # Workers
    loss_window: float = Field(60.0, ge=1)
    """The newest writes a Redis failover may lose: so much of the log is applied again."""
    commit_interval: float = Field(1.0, gt=0)
    session_timeout: float = Field(6.0, ge=1)
    """After which a dead worker's partitions go to another; the broker's group.min.session.timeout.ms bounds it."""

    @field_validator("redis")
    @classmethod
    def _redis_nodes(cls, value: str) -> str:
        if "@" in value:
            raise ValueError("it is shown in errors: user and password have variables of their own")
        if not re.fullmatch(r"rediss?://[^,]+(,[^,:/]+:[0-9]{1,5})*", value):
            raise ValueError("redis://host:port or rediss://host:port is wanted, and ,host:port for each further node")
        return value

    @field_validator("traces")
    @classmethod
    def _collector(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@]+/\S+", value):
            raise ValueError("the whole URL is wanted, without a login: http://127.0.0.1:4318/v1/traces")
        return value

    @field_validator("kafka_ca_file", "redis_ca_file")
    @classmethod
    def _certificates(cls, value: Path | None) -> Path | None:
        if value is not None:
            try:
                ssl.create_default_context(cafile=value)
            except ssl.SSLError as error:
                raise ValueError(f"{value} holds no certificates in PEM") from error
            except OSError as error:
                raise ValueError(f"{value} cannot be read: {error.strerror}") from error
        return value

    @model_validator(mode="after")
    def _logins(self) -> Self:
        if self.kafka_ca_file is not None and not self.kafka_tls:
            raise ValueError("CHAT_KAFKA_CA_FILE is of no use without CHAT_KAFKA_TLS=true")
        if self.redis_ca_file is not None and not self.redis_tls:
            raise ValueError("CHAT_REDIS_CA_FILE is of no use without rediss:// in CHAT_REDIS")
        # SCRAM does not send the password, but what follows is for all to read; Redis sends the password itself.
        if self.kafka_login() is not None and not self.kafka_tls and not _is_loopback(self.kafka):
            raise ValueError("CHAT_KAFKA_USER is refused without CHAT_KAFKA_TLS=true, but for a Kafka on loopback")
        if self.redis_login() is not None and not self.redis_tls and not _is_loopback(self.redis.partition("//")[2]):
            raise ValueError("CHAT_REDIS_PASSWORD is refused without rediss:// in CHAT_REDIS, but for one on loopback")
        return self

    @property
    def redis_tls(self) -> bool:
        """Whether Redis is spoken to by TLS."""
        return self.redis.startswith("rediss:")

    def kafka_login(self) -> tuple[str, str] | None:
        """User and password for Kafka; raises ``SettingsError`` when one is there without the other."""
        password = _secret("CHAT_KAFKA_PASSWORD", self.kafka_password, self.kafka_password_file)
        if bool(self.kafka_user) != bool(password):
            raise SettingsError("CHAT_KAFKA_USER and CHAT_KAFKA_PASSWORD (or its file) go together: one is missing")
        return (self.kafka_user, password) if self.kafka_user and password else None

    def redis_login(self) -> tuple[str | None, str] | None:
        """User (None: ``default``) and password for Redis; raises ``SettingsError`` for a user without a password."""
        password = _secret("CHAT_REDIS_PASSWORD", self.redis_password, self.redis_password_file)
        if self.redis_user and not password:
            raise SettingsError("CHAT_REDIS_USER is set, and neither CHAT_REDIS_PASSWORD nor CHAT_REDIS_PASSWORD_FILE")
        return (self.redis_user or None, password) if password else None

    def jwt_key(self) -> str:
        """The HS256 key; raises ``SettingsError`` when there is none or it is too short to be safe (RFC 7518, 3.2)."""
        key = _secret("CHAT_JWT_SECRET", self.jwt_secret, self.jwt_secret_file)
        if key is None:
            raise SettingsError("no key for tokens: set CHAT_JWT_SECRET, CHAT_JWT_SECRET_FILE (HS256) or CHAT_JWKS_URL")
        if len(key.encode()) < 32:
            of_file = f"_FILE ({self.jwt_secret_file})" if self.jwt_secret is None else ""
            raise SettingsError(f"CHAT_JWT_SECRET{of_file} is shorter than 32 bytes")
        return key


def _secret(variable: str, value: SecretStr | None, file: Path | None) -> str | None:
    """A secret, or what its file holds without the space around it; raises ``SettingsError``."""
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SettingsError(f"{variable}_FILE ({file}) cannot be read: {error.strerror}") from error


def _is_loopback(addresses: str) -> bool:
    """Whether each of the addresses, ``host:port`` with commas, is of this machine only."""
    hosts = [address.rpartition(":")[0].strip("[] ") for address in addresses.split(",")]
    return all(host == "localhost" or re.fullmatch(r"127(\.[0-9]{1,3}){3}|::1", host) for host in hosts)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process; raises ``SettingsError`` naming each wrong variable."""
    try:
        return Settings()
    except ValidationError as error:
        # What is wrong with two settings together names them in its text.
        lines = [
            f"CHAT_{'.'.join(map(str, e['loc'])).upper()}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()
        ]
        raise SettingsError("wrong setting: " + "; ".join(lines)) from error
