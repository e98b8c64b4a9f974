"""What cannot work says so at once, in one line."""

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
from docker.local.engines import Kafka
from docker.local.layout import HOST, ROOT, Layout
from docker.local.probes import WITHIN_S, eventually
from docker.local.temporary_stack import Stack, start_process

_places = asyncio.Semaphore(2)  # more at once only make each of them slow
GATEWAY = ("-m", "gateway")
TOPICS = ("-m", "faust", "-A", "chat_streams", "topics")
MESSAGING = ("-m", "faust", "-A", "chat_streams.messaging", "worker")


class Ended(NamedTuple):
    code: int
    output: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.output.splitlines() if line.strip()]


async def run(stack: Stack, command: tuple[str, ...], **settings: object) -> Ended:
    """Run one of our programs to its end."""
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
    """Check that a program ends with one line that has each of the texts, after at most a line of a library."""
    ended = await run(stack, command, **settings)
    assert ended.code not in (0, None), ended
    assert ended.lines, ended
    assert len([line for line in ended.lines if "Unable connect to" not in line]) == 1, ended.output
    for text in texts:
        assert text in ended.lines[-1], ended.output


@pytest.fixture
def closed_port() -> int:
    """A port nobody listens on, below those that the system gives to connections."""
    return Layout.free(ROOT / "unused").kafka


PROGRAMS = pytest.mark.parametrize("command", [GATEWAY, MESSAGING], ids=["gateway", "messaging"])


@PROGRAMS
async def test_a_wrong_partition_count(stack: Stack, command: tuple[str, ...]) -> None:
    texts = INCOMING_MESSAGES, "8 partitions", "5 are wanted", "CHAT_PARTITIONS"
    await fails(stack, command, *texts, partitions=5, gateway_port=1)


@PROGRAMS
async def test_no_kafka(stack: Stack, command: tuple[str, ...], closed_port: int) -> None:
    address = f"{HOST}:{closed_port}"
    await fails(stack, command, address, "CHAT_KAFKA", kafka=address, gateway_port=1)


async def test_topics_without_kafka_or_database(stack: Stack, closed_port: int) -> None:
    address = f"{HOST}:{closed_port}"
    await asyncio.gather(
        fails(stack, (*TOPICS, "check"), address, "CHAT_KAFKA", kafka=address),
        fails(stack, (*TOPICS, "create"), f"http://{address}", dynamodb_endpoint=f"http://{address}"),
    )


async def test_a_wrong_setting_is_named(stack: Stack) -> None:
    await asyncio.gather(
        fails(stack, GATEWAY, "CHAT_PARTITIONS", partitions="many"),
        fails(stack, MESSAGING, "CHAT_INBOX_TTL", inbox_ttl=0),
        fails(stack, GATEWAY, "CHAT_JWT_SECRET_FILE", jwt_secret_file="/nowhere"),
        fails(stack, GATEWAY, "CHAT_JWT_SECRET", "32 bytes", jwt_secret="short"),
    )


async def test_a_busy_port(stack: Stack, closed_port: int) -> None:
    await asyncio.gather(
        fails(stack, GATEWAY, f"{HOST}:{stack.layout.gateway}", "CHAT_GATEWAY_PORT", metrics_port=closed_port),
        fails(stack, GATEWAY, f"{HOST}:{stack.layout.gateway_metrics}", "CHAT_METRICS_PORT"),
    )


def listening() -> dict[int, str]:
    """The address that each port is listened on, as the kernel has it."""
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
        # As IPv4, and as Java has it.
        assert addresses[running.part.port] in ("0100007F", "0000000000000000FFFF00000100007F"), running.part.name
    for name in ("messaging", "notification", "history"):
        for path in ("/table/", "/router/", "/stats/"):
            status, _ = await stack.get(path, stack.instance(name).part)
            assert status == 404, (name, path)


async def test_a_gateway_without_redis_waits_and_says_so(stack: Stack, closed_port: int) -> None:
    """Redis may come later, and a gateway must not die of it; it takes no connections meanwhile."""
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
    """A Kafka without topics."""
    part = Kafka(Layout.free(tmp_path_factory.mktemp("kafka")))
    await asyncio.to_thread(part.prepare)
    running = start_process(part)
    try:
        await running.wait_ready(WITHIN_S)
        yield part.url
    finally:
        running.kill()


async def test_topics_from_nothing_to_a_new_generation(stack: Stack, empty_kafka: str) -> None:
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

    # Made anew, its offsets begin at 0 again: taken for old positions, new messages would vanish.
    admin = AIOKafkaAdminClient(bootstrap_servers=empty_kafka)
    await admin.start()
    try:
        await admin.delete_topics([INCOMING_MESSAGES])

        async def is_gone() -> bool:
            return INCOMING_MESSAGES not in await admin.list_topics()

        await eventually(is_gone)
        await admin.create_topics([NewTopic(INCOMING_MESSAGES, 8, 1)])
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
