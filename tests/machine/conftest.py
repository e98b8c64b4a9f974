"""Steps that take minutes are told of as they end; a stack for what is tried beside one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from docker.local.temporary_stack import Stack, aws_of


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Return what prints a line at once."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}", end="", flush=True)  # noqa: T201 - for who waits

    return say


@pytest_asyncio.fixture
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Start everything."""
    async with Stack(tmp_path_factory.mktemp("machine")) as stack:
        with aws_of(stack.layout):
            yield stack
