"""Connections to Kafka: client options, TLS, an admin client, and the text of why a connection or a login failed."""

from __future__ import annotations

import contextlib
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.conn import create_conn
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from chat_streams.model.addresses import split_address
from chat_streams.model.errors import TopicsError
from chat_streams.runtime.settings import Settings

MECHANISM: Final = "SCRAM-SHA-512"
KAFKA_AWAY: Final = (KafkaError, OSError, TimeoutError)
"""The errors of a request while Kafka, or one of its brokers, is away."""
NEVER_TAKEN: Final = (MessageSizeTooLargeError, RecordListTooLargeError)
"""The errors of Kafka about what it was given: the same will never be taken."""
PROBE_S: Final = 5.0
REQUEST_SECONDS: Final = 10.0
"""Seconds to wait for Kafka's answer to a request of an admin client."""


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the options that every client of aiokafka gets: addresses, TLS, and the login."""
    options: dict[str, Any] = {"bootstrap_servers": settings.kafka, "security_protocol": "PLAINTEXT"}
    if settings.kafka_tls:
        options |= {"security_protocol": "SSL", "ssl_context": tls_context(settings.kafka_ca_file)}
    if (login := settings.kafka_login()) is not None:
        user, password = login
        options["security_protocol"] = "SASL_SSL" if settings.kafka_tls else "SASL_PLAINTEXT"
        options |= {"sasl_mechanism": MECHANISM, "sasl_plain_username": user, "sasl_plain_password": password}
    return options


async def explain_failure(settings: Settings, error: BaseException) -> str:
    """Return why Kafka cannot be reached, in words for an operator, after a client raised ``error``.

    aiokafka logs the cause, but its exception does not contain it. So this connects once more to each bootstrap
    server in turn, for at most 5 s each, until one attempt shows the cause.
    """
    kafka = f"Kafka at {settings.kafka} (CHAT_KAFKA)"
    options = client_options(settings)
    for address in options.pop("bootstrap_servers").split(","):
        try:
            connection = await create_conn(*split_address(address), request_timeout_ms=int(PROBE_S * 1000), **options)
            try:
                await connection.send(MetadataRequest([]))
            finally:
                connection.close()
        except SaslAuthenticationFailed:
            return f"{kafka} refused user {settings.kafka_user}: the password is wrong, or there is no such user"
        except UnsupportedSaslMechanismError:
            return f"{kafka} takes no {MECHANISM}, by which user {settings.kafka_user} is to log in"
        except ssl.SSLCertVerificationError as cause:
            trusted = settings.kafka_ca_file or "what the system trusts"
            return (
                f"{kafka}: the certificate of {address} is not accepted: {cause.verify_message}; trusted is {trusted}"
                " (CHAT_KAFKA_CA_FILE)"
            )
        except ssl.SSLError as cause:
            return f"{kafka}: {address} speaks no TLS that we understand ({cause.reason}): see CHAT_KAFKA_TLS"
        except KAFKA_AWAY as cause:
            error = cause
        else:
            return f"{kafka}: {error!r}"
    hint = "start it ('make up') or correct the setting"
    if not isinstance(error, ConnectionRefusedError):
        hint += "; a Kafka that ends the connection may want TLS (CHAT_KAFKA_TLS) or a user (CHAT_KAFKA_USER)"
    return f"no {kafka}: {error!r}; {hint}"


class Admin:
    """An admin client; entering it raises ``TopicsError`` with an explanation when Kafka cannot be reached."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=int(REQUEST_SECONDS * 1000))

    async def __aenter__(self) -> AIOKafkaAdminClient:
        try:
            await self._client.start()
        except KafkaError as error:
            await self._client.close()
            raise TopicsError(await explain_failure(self._settings, error)) from error
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


class _OneWay(ssl.SSLObject):
    """A TLS connection that closes by sending its own close_notify, which is all that RFC 8446, 6.1, requires.

    asyncio and uvloop wait 30 s for the peer's close_notify, and the answer to a fetch that arrives meanwhile can make
    that wait futile: stopping a consumer of aiokafka took so long (seen with uvloop 0.23 and asyncio of Python 3.11).
    """

    def unwrap(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            super().unwrap()


@lru_cache(maxsize=4)
def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return the TLS context for Kafka; it trusts the certificates in ``ca_file``, or those of the system."""
    context = ssl.create_default_context(cafile=ca_file)
    context.sslobject_class = _OneWay
    return context
