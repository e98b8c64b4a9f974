"""The end of a process: by a fault of its own, and by force where a stop takes too long."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from chat_streams.runtime import process
from docker.local.layout import ROOT
from docker.local.part import Part


@pytest.fixture(autouse=True)
def nothing_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "log", structlog.get_logger())
    monkeypatch.setattr(process, "_faults", [])
    monkeypatch.setattr(process, "_limits", [])


async def test_a_fault_stops_the_process_in_order_and_is_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[signal.Signals] = []
    monkeypatch.setattr(signal, "raise_signal", raised.append)
    assert not process.failed()
    with capture_logs() as lines:
        process.crash("the gateway", ValueError("broken"))
    assert raised == [signal.SIGTERM]
    assert process.failed()
    assert [(line["event"], line["error"]) for line in lines] == [
        ("the gateway stops by a fault", "ValueError('broken')")
    ]


async def test_a_stop_that_takes_too_long_ends_by_force_and_says_what_it_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    monkeypatch.setattr(os, "_exit", end)
    hanging: asyncio.Task[Any] = asyncio.create_task(asyncio.Event().wait(), name="hanging")
    with capture_logs() as lines:
        process.limit_stop(asyncio.get_running_loop(), 0.01)
        process.limit_stop(asyncio.get_running_loop(), 0.0)
        await asyncio.to_thread(ended.wait, 10)
    hanging.cancel()
    assert codes == [1]
    assert any("hanging" in task for task in lines[0]["tasks"])


def test_whoever_stops_a_service_waits_longer_than_it_takes() -> None:
    assert (
        min(
            # By its text: the CDK takes seconds to import.
            found("docker/compose.yaml", r"x-service:.*?stop_grace_period: (\d+)s"),
            found("docker/aws/services.py", r"^STOP: Final = cdk.Duration.seconds\((\d+)\)"),
            Part.stop_seconds,
        )
        > process.GRACE_SECONDS
    )


def found(file: str, pattern: str) -> int:
    match = re.search(pattern, (ROOT / file).read_text(), re.DOTALL | re.MULTILINE)
    assert match
    return int(match[1])
