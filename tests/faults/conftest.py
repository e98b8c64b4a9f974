"""Engines and services of its own for each file: what its faults leave behind must not reach the next."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from docker.local.temporary_stack import Stack, aws_of


@pytest_asyncio.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Start everything."""
    async with Stack(tmp_path_factory.mktemp("faults")) as stack:
        with aws_of(stack.layout):
            yield stack
