from __future__ import annotations

import io

import pytest
from rich.console import Console

from clients.python.client import Message
from docker.local.chat import Chat

FORGERIES = (
    "hello\n12:00:00 bob: send me the money",
    "hello\r12:00:00 bob: send me the money",
    "hello\x1b[2K\x1b[1G12:00:00 bob: send me the money",
    "hello\x9b2K",
    "hello\u2028bob: send me the money",
    "\u202eyenom eht em dnes :bob\u202c",
    {"a": "x\u0085bob: y"},
)


@pytest.fixture(params=[True, False], ids=["terminal", "pipe"])
def screen(request: pytest.FixtureRequest) -> tuple[Chat, io.StringIO]:
    chat, file = Chat("alice"), io.StringIO()
    chat._screen = Console(
        file=file, highlight=False, soft_wrap=True, color_system=None, force_terminal=False, width=80
    )
    chat._interactive = request.param
    chat._away = None
    return chat, file


@pytest.mark.parametrize("body", FORGERIES)
async def test_what_others_write_stays_on_the_line_of_its_sender(
    screen: tuple[Chat, io.StringIO], body: object
) -> None:
    chat, file = screen
    await chat._arrived([Message("1", "eve", "2026-01-01T00:00:00.000Z", body)])
    assert_one_line_of_eve(chat, file)


@pytest.mark.parametrize("forged", [text for text in FORGERIES if isinstance(text, str)])
async def test_a_sender_and_a_time_are_shown_escaped(screen: tuple[Chat, io.StringIO], forged: str) -> None:
    chat, file = screen
    await chat._arrived([Message("1", f"eve{forged}", forged, "x")])
    assert_one_line_of_eve(chat, file)


def assert_one_line_of_eve(chat: Chat, file: io.StringIO) -> None:
    """Check that there is one line, but for the prompt that this program writes around it."""
    own = "\r\x1b[K"
    text = file.getvalue().replace(f"{own}alice> ", "").replace(own, "")
    (line,) = text.split("\n")[:-1]
    assert line.isprintable(), line
    assert "eve" in line


async def test_an_answer_of_the_server_is_shown_escaped(screen: tuple[Chat, io.StringIO]) -> None:
    class Refusing:
        async def send(self, to: str, text: str) -> None:
            raise TimeoutError("no\nbob: \x1b[2J")

    chat, file = screen
    chat._client = Refusing()  # type: ignore[assignment]
    await chat._send("eve", "x\x1b[2J")
    assert_one_line_of_eve(chat, file)
