"""Programs that cannot work say so at once, in one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
import pytest_asyncio
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from chat_streams.kafka.names import INCOMING_MESSAGES
from chat_streams.kafka.topics import of_users
from docker.local.engines import Kafka
from docker.local.layout import HOST, ROOT, Layout
from docker.local.probes import WITHIN_S, eventually
from docker.local.temporary_stack import Stack, start_process

_places = asyncio.Semaphore(2)  # more at once only make each of them slow
GATEWAY = ("-m", "gateway")
COMMANDS = ("-m", "faust", "-A", "chat_streams")
TOPICS = (*COMMANDS, "topics")
STACK = ("-m", "docker.local.stack", "up")


def worker(name: str) -> tuple[str, ...]:
    """Return the command that runs a worker."""
    return ("-m", "faust", "-A", f"chat_streams.{name}", "worker")


MESSAGING = worker("messaging")


class Ended(NamedTuple):
    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.strip()]


async def run(stack: Stack, command: tuple[str, ...], **settings: object) -> Ended:
    """Run one of the project's programs to its end."""
    environment = stack.environment | {f"CHAT_{name.upper()}": str(value) for name, value in settings.items()}
    async with _places:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, *command),
            cwd=ROOT,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(WITHIN_S):
                output, _ = await process.communicate()
        except BaseException:
            process.kill()
            raise
        assert process.returncode is not None
        return Ended(process.returncode, output.decode())


async def fails(stack: Stack, command: tuple[str, ...], *texts: str, **settings: object) -> None:
    """Check that a program ends with one line that has each of the texts, after at most one line of a library."""
    ended = await run(stack, command, **settings)
    assert ended.code == 1, ended
    assert ended.lines, ended
    assert len([line for line in ended.lines if "Unable connect to" not in line]) == 1, ended.output
    assert "Traceback" not in ended.output
    for text in texts:
        assert text in ended.lines[-1], ended.output


@pytest.fixture
def closed_port() -> int:
    """Return a port nobody listens on, below those that the system gives to outgoing connections."""
    return Layout.free(ROOT / "unused").kafka


PROGRAMS = pytest.mark.parametrize("command", [GATEWAY, MESSAGING], ids=["gateway", "messaging"])


@PROGRAMS
async def test_a_wrong_partition_count_ends_the_program(stack: Stack, command: tuple[str, ...]) -> None:
    texts = INCOMING_MESSAGES, "8 partitions", "5 are wanted", "CHAT_PARTITIONS"
    await fails(stack, command, *texts, partitions=5, gateway_port=1)


@PROGRAMS
async def test_a_missing_kafka_ends_the_program(stack: Stack, command: tuple[str, ...], closed_port: int) -> None:
    address = f"{HOST}:{closed_port}"
    await fails(stack, command, address, "CHAT_KAFKA", kafka=address, gateway_port=1)


async def test_the_topics_commands_name_a_missing_kafka_or_database(stack: Stack, closed_port: int) -> None:
    address = f"{HOST}:{closed_port}"
    await asyncio.gather(
        fails(stack, (*TOPICS, "check"), address, "CHAT_KAFKA", kafka=address),
        fails(stack, (*TOPICS, "create"), f"http://{address}", dynamodb_endpoint=f"http://{address}"),
    )


async def test_a_wrong_setting_is_named_by_every_program(stack: Stack, tmp_path: Path) -> None:
    text = f"CHAT_JWT_SECRET_FILE is '{tmp_path}': a file that holds the secret is wanted: it is a folder"
    await asyncio.gather(
        fails(stack, GATEWAY, "CHAT_LEASE is 'nan': a number from 0.1 to 86,400 is wanted", lease="nan"),
        fails(stack, GATEWAY, "CHAT_JWT_SECRET is shorter than 32 bytes", jwt_secret="short"),
        fails(stack, MESSAGING, "CHAT_INBOX_TTL is '0': a whole number from 1", inbox_ttl=0),
        fails(stack, worker("notification"), "CHAT_KAFKA is 'kafka': host:port is wanted", kafka="kafka"),
        fails(stack, worker("history"), "CHAT_DYNAMODB_ENDPOINT is 'x:1': a whole URL", dynamodb_endpoint="x:1"),
        fails(stack, worker("inspector"), text, jwt_secret_file=tmp_path),
        fails(stack, (*COMMANDS, "lag"), "CHAT_REDIS is '\u2026@x': a URL without a login", redis="redis://:sesame@x"),
        fails(stack, STACK, f"CHAT_LOCAL_DATA is '{__file__}': the path of a folder is wanted", local_data=__file__),
    )


async def test_a_misspelt_setting_is_a_warning_and_the_program_goes_on(stack: Stack) -> None:
    ended = await run(stack, (*COMMANDS, "token", "alice"), slot=3)
    assert ended.code == 0, ended
    warning, token = ended.lines
    assert "CHAT_SLOT is no setting, and is ignored: is CHAT_SLOTS meant?" in warning
    assert token.count(".") == 2


async def test_a_session_timeout_that_the_broker_refuses_ends_a_worker(stack: Stack) -> None:
    ended = await run(stack, worker("history"), session_timeout=1)
    assert ended.code == 1, ended
    assert "CHAT_SESSION_TIMEOUT is 1: a number from the broker's group.min.session.timeout.ms" in ended.output


async def test_a_busy_port_ends_the_gateway(stack: Stack, closed_port: int) -> None:
    await asyncio.gather(
        fails(stack, GATEWAY, f"{HOST}:{stack.layout.gateway}", "CHAT_GATEWAY_PORT", metrics_port=closed_port),
        fails(stack, GATEWAY, f"{HOST}:{stack.layout.gateway_metrics}", "CHAT_METRICS_PORT"),
    )


def listening() -> dict[int, str]:
    """Return the address on which each port is listened on, from the kernel's tables."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, local, _, state = line.split()[:4]
            address, port = local.split(":")
            if state == "0A":
                found[int(port, 16)] = address
    return found


async def test_everything_listens_on_loopback_and_no_tables_are_shown(stack: Stack) -> None:
    addresses = listening()
    for name, running in stack.running.items():
        if name == "dynamodb":
            continue  # DynamoDB Local listens on all interfaces and has no option for it (README, "Every day").
        # As IPv4, and as Java's IPv4-mapped IPv6.
        assert addresses[running.part.port] in ("0100007F", "0000000000000000FFFF00000100007F"), running.part.name
    for name in ("messaging", "notification", "history"):
        for path in ("/table/", "/router/", "/stats/"):
            status, _ = await stack.get(path, stack.instance(name).part)
            assert status == 404, (name, path)


async def test_a_gateway_without_redis_waits_and_says_so(stack: Stack, closed_port: int) -> None:
    """Redis may come up later, and a gateway must not end because of it; meanwhile it accepts no connections."""
    gateway = stack.service("gateway", redis=f"redis://{HOST}:{closed_port}")
    gateway.prepare()
    running = start_process(gateway)
    try:

        async def only_redis_is_missing() -> bool:
            try:
                status, answer = await stack.get("/readyz", gateway)
            except aiohttp.ClientError:
                return False
            assert status == 503
            return bool(answer["missing"] == ["no slot", "redis"])

        await eventually(only_redis_is_missing)
        assert (await stack.get("/healthz", gateway))[0] == 200
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            async with stack.socket(gateway.url):
                pass
        assert caught.value.status == 503
        assert running.alive
    finally:
        running.kill()


@pytest_asyncio.fixture(scope="module")
async def empty_kafka(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Start a Kafka without topics."""
    part = Kafka(Layout.free(tmp_path_factory.mktemp("kafka")))
    await asyncio.to_thread(part.prepare)
    running = start_process(part)
    try:
        await running.wait_ready(WITHIN_S)
        yield part.url
    finally:
        running.kill()


async def test_topics_are_created_checked_and_given_a_new_generation(stack: Stack, empty_kafka: str) -> None:
    create, check = (*TOPICS, "create"), (*TOPICS, "check")
    there = {"kafka": empty_kafka, "history_table": "another_history", "gateway_port": 1}
    missing = INCOMING_MESSAGES, "is missing", "topics create"
    await asyncio.gather(*(fails(stack, c, *missing, **there) for c in (GATEWAY, MESSAGING, check)))
    assert (await run(stack, create, **there)).code == 0
    checked, again, _ = await asyncio.gather(
        run(stack, check, **there),
        run(stack, create, **there),
        fails(stack, create, "8 partitions", "CHAT_PARTITIONS", partitions=5, **there),
    )
    assert (checked.code, again.code) == (0, 0)
    assert "generation 1 with 8 partitions" in checked.output
    assert "nothing was missing" in again.output

    # The offsets of a recreated topic begin at 0: with the old generation, new messages would be taken for old ones and
    # lost.
    admin = AIOKafkaAdminClient(bootstrap_servers=empty_kafka)
    await admin.start()
    try:
        await admin.delete_topics([INCOMING_MESSAGES])

        async def is_gone() -> bool:
            return INCOMING_MESSAGES not in await admin.list_topics()

        await eventually(is_gone)
        (topic, *_) = of_users(stack.settings, 1, 8)
        await admin.create_topics([NewTopic(topic.name, topic.partitions, 1, topic_configs=topic.config)])
    finally:
        await admin.close()
    anew = INCOMING_MESSAGES, "made anew", "topics create"
    await asyncio.gather(*(fails(stack, c, *anew, **there) for c in (GATEWAY, MESSAGING, check)))
    created = await run(stack, create, **there)
    assert created.code == 0
    assert "generation 2 with 8 partitions" in created.output


async def test_the_token_command_makes_a_token_that_connects(stack: Stack) -> None:
    ended = await run(stack, ("-m", "faust", "-A", "chat_streams", "token", "alice"))
    assert ended.code == 0
    (token,) = ended.lines
    async with stack.socket() as raw:
        assert (await raw.hello(token))["user"] == "alice"
    await fails(stack, ("-m", "faust", "-A", "chat_streams", "token", "no user"), "no user id")
