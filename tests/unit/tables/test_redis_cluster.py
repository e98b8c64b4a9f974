"""Errors on a connection to Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
import pytest_asyncio
from redis.asyncio.cluster import ClusterNode
from redis.crc import key_slot
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from chat_streams.model.errors import RedisUnavailable
from chat_streams.runtime.settings import Settings
from tables.redis_cluster import Cluster
from tests.unit.tables.fake_redis import SLOTS, FakeRedis, one


class Connection:
    """A stand-in for a node with one connection, whose writes fail."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.disconnected = self.released = False

    name = "node"
    is_connected = True

    def acquire_connection(self) -> Connection:
        return self

    def release(self, connection: Connection) -> None:
        assert connection.disconnected
        self.released = True

    async def connect(self) -> None: ...

    async def disconnect_if_needed(self, connection: Connection) -> None: ...

    def pack_commands(self, commands: Any) -> list[bytes]:
        return [b"" for _ in commands]

    async def send_packed_command(self, command: Any) -> None:
        raise self.error

    async def disconnect(self, nowait: bool) -> None:
        self.disconnected = True


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ConnectionResetError(), OSError),
        (TimeoutError(), TimeoutError),
    ],
)
async def test_no_caller_reads_the_answers_meant_for_another(error: Exception, raised: type[Exception]) -> None:
    cluster = Cluster(Settings())
    node = Connection(error)
    with pytest.raises(raised):
        await cluster._send(cast(ClusterNode, node), [("PING",)])
    assert node.released


@pytest.mark.parametrize(
    "answer",
    [
        NoPermissionError("this user has no permissions to run the 'xadd' command"),
        ResponseError("The user executing the script can't run this command or subcommand script: f"),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: f, on @user_function:1."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MISCONF Redis is configured to save RDB snapshots, but is unable to persist to disk."),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
    ],
)
async def test_a_refusal_by_redis_that_is_no_fault_of_the_message_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, answer: ResponseError
) -> None:
    """Any other error reply makes a dead letter of the record."""
    cluster = Cluster(Settings())

    async def nothing() -> None: ...

    async def answers(commands: Any) -> list[Any]:
        return [answer]

    monkeypatch.setattr(cluster._redis, "initialize", nothing)
    monkeypatch.setattr(cluster, "_round", answers)
    with pytest.raises(RedisUnavailable):
        await cluster.pipeline([("FCALL", "append", 1, "{u:bob}:inbox")])


def test_the_setting_may_name_several_nodes() -> None:
    cluster = Cluster(Settings(redis="redis://127.0.0.1:7000,127.0.0.1:7001,127.0.0.1:7002", redis_password="secret"))
    assert sorted(cluster._configured) == [f"127.0.0.1:{port}" for port in (7000, 7001, 7002)]
    assert {node.connection_kwargs["password"] for node in cluster._configured.values()} == {"secret"}


# One node and the others


LOW, HIGH = (
    ("FCALL", "f", 1, next(key for key in map(str, range(100)) if (key_slot(key.encode()) < SLOTS // 2) is low))
    for low in (True, False)
)
"""Calls for keys of the first node, and of the second one."""
TIMEOUT_S = 1.0


@pytest_asyncio.fixture
async def servers() -> AsyncIterator[FakeRedis]:
    async with FakeRedis() as servers:
        yield servers


@pytest_asyncio.fixture
async def cluster(servers: FakeRedis) -> AsyncIterator[Cluster]:
    cluster = Cluster(Settings(redis=f"redis://127.0.0.1:{servers.nodes[0].port}", engine_timeout=30))
    assert await cluster.pipeline([LOW, HIGH]) == [1, 1]
    yield cluster
    await cluster.close()


class Gate:
    """An answer that is given when a test says so."""

    def __init__(self) -> None:
        self.reached, self.opened = asyncio.Event(), asyncio.Event()

    async def __call__(self, _: list[bytes]) -> bytes:
        self.reached.set()
        await self.opened.wait()
        return b":2\r\n"


def saying(error: str) -> Callable[[list[bytes]], Awaitable[bytes]]:
    async def answer(_: list[bytes]) -> bytes:
        return f"-{error}\r\n".encode()

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        saying("OOM command not allowed when used memory > 'maxmemory'."),
        saying("MOVED 1 127.0.0.1:1"),
        saying("CLUSTERDOWN The cluster is down"),
        saying("LOADING Redis is loading the dataset in memory"),
    ],
    ids=["OOM", "MOVED", "CLUSTERDOWN", "LOADING"],
)
async def test_what_one_node_says_disturbs_no_call_under_way_to_another(
    servers: FakeRedis, cluster: Cluster, answer: Any
) -> None:
    servers.nodes[0].answer, gate = answer, Gate()
    servers.nodes[1].answer = gate
    under_way = asyncio.create_task(cluster.call(HIGH))
    await gate.reached.wait()
    for _ in range(3):
        with pytest.raises(RedisUnavailable):
            await cluster.call(LOW)
    gate.opened.set()
    assert await under_way == 2
    servers.nodes[0].answer = one
    assert await cluster.pipeline([LOW, HIGH]) == [1, 2]


async def test_a_node_that_does_not_answer_disturbs_no_call_under_way_to_another(servers: FakeRedis) -> None:
    cluster = Cluster(Settings(redis=f"redis://127.0.0.1:{servers.nodes[0].port}", engine_timeout=TIMEOUT_S))
    assert await cluster.pipeline([LOW, HIGH]) == [1, 1]
    silent, gate = Gate(), Gate()
    servers.nodes[0].answer, servers.nodes[1].answer = silent, gate
    low = asyncio.create_task(cluster.call(LOW))
    await silent.reached.wait()
    await asyncio.sleep(TIMEOUT_S / 2)
    high = asyncio.create_task(cluster.call(HIGH))
    with pytest.raises(RedisUnavailable):
        await low
    gate.opened.set()
    assert await high == 2
    await cluster.close()


async def test_a_server_that_is_full_costs_no_connection_and_no_look_at_the_cluster(
    servers: FakeRedis, cluster: Cluster
) -> None:
    connections = [set(node.connections) for node in servers.nodes]
    looks = sum(node.asked["CLUSTER"] for node in servers.nodes)
    servers.nodes[0].answer = saying("OOM command not allowed when used memory > 'maxmemory'.")
    for _ in range(5):
        with pytest.raises(RedisUnavailable, match="OutOfMemoryError"):
            await cluster.pipeline([LOW, HIGH])
    assert [node.connections for node in servers.nodes] == connections
    assert sum(node.asked["CLUSTER"] for node in servers.nodes) == looks


async def test_what_a_server_refuses_is_raised_and_not_taken_for_an_answer(
    servers: FakeRedis, cluster: Cluster
) -> None:
    servers.nodes[0].answer = saying("WRONGTYPE Operation against a key holding the wrong kind of value")
    for ask in (cluster.call(LOW), cluster.pipeline([HIGH, LOW, LOW]), cluster.patient([LOW, HIGH], "ask")):
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await ask
    high, low = await cluster.each([HIGH, LOW])
    assert high == 1
    assert isinstance(low, ResponseError)


async def test_slots_that_moved_are_found_by_the_next_call(servers: FakeRedis, cluster: Cluster) -> None:
    servers.owner = [1, 1]
    servers.nodes[0].answer = saying(f"MOVED 1 127.0.0.1:{servers.nodes[1].port}")
    with pytest.raises(RedisUnavailable, match="MovedError"):
        await cluster.call(LOW)
    assert await cluster.pipeline([LOW, HIGH]) == [1, 1]


async def test_a_node_that_restarts_fails_one_call_of_many_connections(servers: FakeRedis, cluster: Cluster) -> None:
    gate = Gate()
    servers.nodes[0].answer = gate
    many = [asyncio.create_task(cluster.call(LOW)) for _ in range(10)]
    await gate.reached.wait()
    gate.opened.set()
    await asyncio.gather(*many)
    await servers.nodes[0].stop()
    await servers.nodes[0].start()
    with pytest.raises(RedisUnavailable):
        await cluster.call(LOW)
    for _ in range(20):
        assert await asyncio.gather(*(cluster.call(LOW) for _ in range(10))) == [2] * 10


async def test_a_node_that_is_gone_is_replaced_by_the_one_that_has_its_slots(
    servers: FakeRedis, cluster: Cluster
) -> None:
    await servers.nodes[0].stop()
    servers.owner = [1, 1]
    with pytest.raises(RedisUnavailable):
        await cluster.call(LOW)
    assert await cluster.pipeline([LOW, HIGH]) == [1, 1]
