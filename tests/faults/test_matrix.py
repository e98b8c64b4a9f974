"""A few cells of the fault matrix, and tests of its own check; ``make faults`` runs all cells."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import pytest_asyncio

from chat_streams.model.position import Position
from clients.python.client import Message
from docker.local.probes import WITHIN_S
from docker.local.temporary_stack import Stack
from tests.faults.crowd import Crowd, Device, Phase
from tests.faults.matrix import Cell, Lengths, trial_of
from tests.faults.proxy import CuttableStack
from tests.faults.trial import Limits, run_trial

SEED = 1
PATIENT = Limits(late=math.inf, quiet=0.0, probe=WITHIN_S, drain=WITHIN_S)
"""Limits without times: healing in seconds is for `make faults`, which has the machine to itself."""
CELLS = [
    Cell("cut", "messaging", Phase.STORING),
    Cell("kill", "gateway", Phase.LIVE),
    Cell("kill", "kafka", Phase.LIVE),
]


@pytest_asyncio.fixture(scope="module")
async def cuttable(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[CuttableStack]:
    """Start one stack for all cells; each cell has its own users."""
    async with CuttableStack(tmp_path_factory.mktemp("matrix")) as stack:
        yield stack


@pytest.mark.parametrize("cell", CELLS, ids=str)
async def test_a_cell_loses_swaps_and_repeats_nothing(cuttable: CuttableStack, cell: Cell) -> None:
    before = refused(cuttable)
    result = await run_trial(cuttable, trial_of(cell, SEED, Lengths(), cuttable), print, PATIENT)
    assert result.kept, result
    if cell == Cell("cut", "messaging", Phase.STORING):
        # The worker that was cut off from Kafka, but not from Redis, left the inboxes to the one that took over.
        after = refused(cuttable)
        assert [name for name in after if name != result.victim and after[name] > before[name]] == []


def refused(stack: CuttableStack) -> dict[str, int]:
    """Return how often Redis refused each messaging worker for a stale fencing token."""
    logs = {name: stack.running[name].part.log for name in ("messaging", "messaging-2")}
    return {name: log.read_text().count("redis refused to append") for name, log in logs.items()}


def message(device: Device, number: int, offset: int, sender: str = "alice", to: str = "") -> Message:
    body: Any = [to or device.user, number]
    return Message(f"m{number}", sender, "2026-01-01T00:00:00Z", body, str(Position.of(1, offset, 0)))


@pytest.fixture
def device() -> Device:
    return Crowd(cast(Stack, None), [], Phase.LIVE, "seed").devices[0]


def test_the_check_accepts_messages_in_order_on_each_connection(device: Device) -> None:
    device.take("one", [message(device, 1, 10), message(device, 1, 11, "carla"), message(device, 2, 12)])
    device.take("two", [message(device, 2, 12), message(device, 3, 13)])
    assert (device.swapped, device.repeated) == (0, 0)
    assert device.got == {("alice", 1), ("carla", 1), ("alice", 2), ("alice", 3)}


@pytest.mark.parametrize(("number", "offset"), [(2, 12), (2, 13), (3, 11)])
def test_the_check_finds_a_message_repeated_on_one_connection(device: Device, number: int, offset: int) -> None:
    device.take("one", [message(device, 1, 10), message(device, 2, 12)])
    device.take("one", [message(device, number, offset)])
    assert (device.swapped, device.repeated) == (0, 1)


@pytest.mark.parametrize("connection", ["one", "two"])
def test_the_check_finds_a_message_behind_a_later_one(device: Device, connection: str) -> None:
    device.take("one", [message(device, 2, 12)])
    device.take(connection, [message(device, 1, 13)])
    assert (device.swapped, device.repeated) == (1, 0)


def test_the_check_accepts_a_message_that_is_gone_only_where_its_device_was_told(device: Device) -> None:
    crowd = device.crowd
    crowd.confirmed_to[device.user] = {("alice", n) for n in range(1, 5)}
    crowd.gone[device.user] = {("alice", n): Position.of(1, 9 + n, 0) for n in (2, 3)}
    device.take("one", [message(device, 1, 10)])
    assert device.missing() == {("alice", 2), ("alice", 3), ("alice", 4)}
    device.miss(str(Position.of(1, 10, 0)), str(Position.of(1, 11, 5)))
    # Message 4 is not gone, and 3 lies behind the range.
    assert (device.missing(), device.missed()) == ({("alice", 3), ("alice", 4)}, {("alice", 2)})
    device.miss(str(Position.of(1, 11, 5)), str(Position.of(1, 20, 0)))
    assert (device.missing(), device.missed()) == ({("alice", 4)}, {("alice", 2), ("alice", 3)})
    device.take("one", [message(device, 4, 21)])
    assert device.missing() == set()
    assert (crowd.check().missed, crowd.check().problems) == (2, [p for p in crowd.check().problems if "lacks" in p])


def test_the_check_finds_a_range_that_is_told_again_or_without_a_reason(device: Device) -> None:
    crowd = device.crowd
    device.miss("0-0", str(Position.of(1, 5, 0)))
    crowd.gone[device.user] = {("alice", 1): Position.of(1, 7, 0)}
    device.miss(str(Position.of(1, 5, 0)), str(Position.of(1, 8, 0)))
    device.miss(str(Position.of(1, 5, 0)), str(Position.of(1, 8, 0)))
    problems = [problem for problem in crowd.check().problems if "told" in problem]
    assert len(problems) == 2
    assert "was told that it missed" in problems[0]
    assert "was told again" in problems[1]


def test_the_check_finds_a_message_that_never_comes(device: Device) -> None:
    crowd = device.crowd
    crowd.confirmed_to[device.user] = {("alice", 1), ("alice", 2)}
    device.take("one", [message(device, 1, 10), message(device, 2, 11, to="somebody else")])
    assert device.missing() == {("alice", 2)}
    outcome = crowd.check()
    # The user's other devices have received neither message.
    assert outcome.lost == 2 * sum(d.user == device.user for d in crowd.devices) - 1
    assert any("which is to somebody else" in problem for problem in outcome.problems)
