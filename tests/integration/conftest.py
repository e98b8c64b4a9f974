"""One stack of real engines and services for the whole run, on ports and in a folder of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from docker.local.layout import base_environment
from docker.local.temporary_stack import Stack, aws_of


@pytest_asyncio.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Start everything; what the user's own environment says about Connect Chat or AWS counts for nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - base_environment().keys() | {n for n in os.environ if n.startswith("CHAT_")}:
            patch.delenv(name)
        patch.setenv("CHAT_LOG_FORMAT", "json")
        # A run that is told to end ends its stack, too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        async with Stack(tmp_path_factory.mktemp("stack"), patient=True) as stack:
            with aws_of(stack.layout):
                yield stack


@pytest_asyncio.fixture(scope="session")
async def small(stack: Stack) -> str:
    """Start a second gateway with a small window and a lease that outlives a pause, and return its URL."""
    gateway = stack.service("gateway", window=50, lease=60)
    await stack.start(gateway)
    return gateway.url


@pytest.fixture(autouse=True)
def _all_parts_live(stack: Stack) -> Iterator[None]:
    """Fail, with the end of its log, where a part of the stack died without a test's doing."""
    stack.check()
    yield
    stack.check()
