"""Errors for a certificate that must not be accepted, of Kafka and of Redis alike; the server only speaks TLS."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiokafka.errors import KafkaConnectionError

from chat_streams.kafka.client import client_options, explain_failure
from chat_streams.model.errors import RedisRefused
from chat_streams.runtime.settings import Settings
from tables.redis_cluster import Cluster

YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


@contextlib.asynccontextmanager
async def server(certificate: trustme.LeafCert | None) -> AsyncIterator[int]:
    """Listen with a certificate, or without TLS, and close each connection at once; yields the port."""
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(context)

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"no TLS here\r\n")
        writer.close()

    listening = await asyncio.start_server(end, "127.0.0.1", 0, ssl=context)
    async with listening:
        yield listening.sockets[0].getsockname()[1]


CASES = pytest.mark.parametrize(
    ("case", "text"),
    [
        ("expired", "certificate has expired"),
        ("name", "mismatch"),
        ("authority", "unable to get local issuer certificate"),
        ("plain", "speaks no TLS"),
    ],
)


@contextlib.asynccontextmanager
async def a_bad_one(case: str, folder: Path) -> AsyncIterator[tuple[int, Path]]:
    """Listen with the fault of a case; yields the port and the file of the authority that is trusted."""
    trusted, other = trustme.CA(), trustme.CA()
    trusted.cert_pem.write_to_path(folder / "ca.pem")
    certificate = {
        "expired": trusted.issue_cert("127.0.0.1", not_after=YESTERDAY),
        "name": trusted.issue_cert("kafka.test"),
        "authority": other.issue_cert("127.0.0.1"),
    }.get(case)
    async with server(certificate) as port:
        yield port, folder / "ca.pem"


@CASES
async def test_a_kafka_with_a_bad_certificate_is_refused(tmp_path: Path, case: str, text: str) -> None:
    async with a_bad_one(case, tmp_path) as (port, authority):
        settings = Settings(kafka=f"127.0.0.1:{port}", kafka_tls=True, kafka_ca_file=authority)
        assert text in await explain_failure(settings, KafkaConnectionError())


@CASES
async def test_a_redis_with_a_bad_certificate_is_refused(tmp_path: Path, case: str, text: str) -> None:
    async with a_bad_one(case, tmp_path) as (port, authority):
        cluster = Cluster(Settings(redis=f"rediss://127.0.0.1:{port}", redis_ca_file=authority))
        try:
            with pytest.raises(RedisRefused, match=text):
                await cluster.check()
        finally:
            await cluster.close()


def test_the_password_is_in_no_representation() -> None:
    settings = Settings(kafka="127.0.0.1:9092", kafka_tls=True, kafka_user="alice", kafka_password="sesame")
    assert client_options(settings)["sasl_plain_password"] == "sesame"
    assert client_options(settings)["security_protocol"] == "SASL_SSL"
    assert "sesame" not in repr(settings)
