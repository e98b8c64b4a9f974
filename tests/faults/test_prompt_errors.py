"""What cannot work says so soon: a supervisor that restarts it must not wait for a minute to find out."""

from __future__ import annotations

import time

import pytest

from docker.local.layout import HOST, ROOT, Layout
from docker.local.temporary_stack import Stack
from tests.integration.test_start import GATEWAY, MESSAGING, TOPICS, fails

AT_MOST_S = 15.0


@pytest.mark.long
async def test_a_program_that_cannot_work_ends_within_15_s(stack: Stack) -> None:
    nobody = f"{HOST}:{Layout.free(ROOT / 'unused').kafka}"
    took: dict[str, float] = {}
    for name, command, settings in (
        ("gateway, no Kafka", GATEWAY, {"kafka": nobody}),
        ("messaging, no Kafka", MESSAGING, {"kafka": nobody}),
        ("topics check, no Kafka", (*TOPICS, "check"), {"kafka": nobody}),
        ("topics create, no database", (*TOPICS, "create"), {"dynamodb_endpoint": f"http://{nobody}"}),
        ("gateway, other partitions", GATEWAY, {"partitions": 5}),
        ("messaging, other partitions", MESSAGING, {"partitions": 5}),
        ("gateway, a wrong setting", GATEWAY, {"partitions": "many"}),
        ("gateway, a busy port", GATEWAY, {}),
    ):
        begin = time.monotonic()
        await fails(stack, command, **settings)
        took[name] = time.monotonic() - begin
    assert max(took.values()) < AT_MOST_S, took
