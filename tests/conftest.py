"""What holds for every test."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

FOLDERS: Final = ("faults", "browser", "aws", "integration", "unit")
"""In this order: the longest files first, and short ones at the end, so that all workers end together."""
FLOODS: Final = ("test_start.py", "test_hostile.py", "test_delivery.py", "test_connecting.py", "test_registry.py")
"""DynamoDB Local stores some hundred messages a second: what waits for history comes before what sends 100,000."""

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests into the order in which workers take their files."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> tuple[int, int]:
        folder, *_ = item.path.relative_to(here).parts
        return (
            FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS),
            FLOODS.index(item.path.name) if item.path.name in FLOODS else -1,
        )

    items.sort(key=place)
