"""Engines and services of its own for each test: what a fault leaves behind must not reach the next."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from docker.local.layout import service_environment
from tests.integration.support import Stack


@pytest_asyncio.fixture
async def stack(tmp_path: object, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """Start everything."""
    async with Stack(tmp_path_factory.mktemp("faults")) as stack:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in service_environment(stack.layout).items():
                if name.startswith("AWS_"):
                    patch.setenv(name, value)
            yield stack
