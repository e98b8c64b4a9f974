"""The handler of ``history``: what is a client's error, and what may be tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from chat_streams.model.errors import BeyondLog, ConnectChatError, HistoryUnavailable
from gateway.handlers.history import REQUESTS_AT_ONCE, handle
from gateway.protocol import History
from tables.chat_history import HistoryPage


class Session:
    """A session whose log and history answer with ``error``, if there is one."""

    user = "bob"
    log = SimpleNamespace(warning=lambda *_, **__: None)

    def __init__(self, error: ConnectChatError | None = None) -> None:
        async def answer(*_: Any) -> HistoryPage:
            if error is not None:
                raise error
            return HistoryPage([], None)

        self.services = SimpleNamespace(
            history=SimpleNamespace(page=answer, range=answer), log=SimpleNamespace(wait_for_history=answer)
        )
        self.history_requests = 0
        self.frames: list[dict[str, Any]] = []
        self.writer = SimpleNamespace(put=lambda frame: self.frames.append(json.loads(frame)))
        self.tasks: list[asyncio.Task[None]] = []

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    def update_reading(self) -> None:
        pass

    async def ask(self, frame: History) -> dict[str, Any]:
        handle(self, frame)  # type: ignore[arg-type]
        await asyncio.gather(*self.tasks)
        (answer,) = self.frames
        return answer


RANGE = History("h", after="0-0", until="1-0")


@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [(BeyondLog("beyond"), "bad_frame", False), (HistoryUnavailable("away"), "history_unavailable", True)],
)
async def test_an_error_says_whether_the_same_request_may_succeed_later(
    error: ConnectChatError, code: str, retry: bool
) -> None:
    session = Session(error)
    answer = await session.ask(RANGE)
    assert (answer["type"], answer["code"], answer["retry"], answer["ref"]) == ("error", code, retry, "h")
    assert ("`$.until`" in answer["message"]) == (code == "bad_frame")
    assert session.history_requests == 0


async def test_a_cursor_of_the_other_kind_of_page_is_named() -> None:
    answer = await Session().ask(History("h", after="0-0", until="1-0", before="1#m#alice"))
    assert (answer["code"], "`$.before`" in answer["message"]) == ("bad_frame", True)


async def test_one_request_too_many_is_told_to_wait() -> None:
    session = Session()
    for _ in range(REQUESTS_AT_ONCE + 1):
        handle(session, RANGE)  # type: ignore[arg-type]
    assert [frame.get("code") for frame in session.frames] == ["busy"]
    await asyncio.gather(*session.tasks)
    assert len(session.frames) == REQUESTS_AT_ONCE + 1
