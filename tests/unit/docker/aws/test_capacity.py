"""The capacity model's arithmetic: what doubles, what has a floor, and which bound counts."""

from __future__ import annotations

from dataclasses import replace

from docker.aws.capacity import GIB, Cost, Habits, Room, measured, needs

COST = Cost(300, 50, 350, 500, gateway_us=100, messaging_us=200, notification_us=50, redis_us=40, history_us=100)
HABITS = Habits(messages_a_day=86_400, peak=2, connected=0.5, pending=10)


def test_a_few_users_need_one_task_of_each_in_each_zone() -> None:
    found = needs(1, COST, HABITS, Room())
    assert (found.messages_per_s, found.gateways, found.messaging, found.history) == (2, 3, 3, 3)
    assert (found.partitions, found.redis_shards, found.slots) == (8, 3, 6)


def test_work_is_divided_by_what_a_core_may_do() -> None:
    found = needs(50_000, COST, HABITS, Room(busy=0.5, gateway_connections=10_000))
    # 100,000 a second at 200 us are 20 cores, half busy each.
    assert (found.messages_per_s, found.messaging, found.gateways, found.redis_shards) == (100_000, 40, 20, 8)
    assert (found.partitions, found.dynamodb_writes_per_s) == (128, 200_000)
    assert found.kafka_bytes_per_s == 100_000 * 700 * 3


def test_connections_and_memory_are_bounds_of_their_own() -> None:
    quiet = replace(HABITS, messages_a_day=1)
    found = needs(1_000_000, COST, quiet, Room(gateway_connections=5_000, user_bytes=1_000, shard_bytes=GIB))
    assert (found.gateways, found.redis_bytes, found.redis_shards) == (100, 6e9, 6)


def test_the_bytes_are_those_of_the_smallest_shape() -> None:
    shape = {
        "log_bytes": {"incoming_messages": 6, "session_events": 1, "inbox_requests": 2, "outgoing_messages": 7},
        "inbox_bytes": {"redis_bytes": 8},
    }
    assert measured({"shapes": [shape, {}]}) == Cost(6, 3, 7, 8)
