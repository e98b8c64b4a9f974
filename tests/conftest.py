"""Settings for all tests: the order of files, and Hypothesis without deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

FOLDERS: Final = ("faults", "browser", "aws", "integration", "unit")
"""The order of the folders: those with the longest files first, short ones last, so that all workers end together."""
FLOODS: Final = ("test_start.py", "test_hostile.py", "test_delivery.py", "test_connecting.py", "test_registry.py")
"""Files that send 100,000 messages, after those that wait for history: DynamoDB Local stores some hundred a second."""

# No deadline: the time of an example depends on how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests into the order in which workers take their files."""
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> tuple[int, int]:
        folder, *_ = item.path.relative_to(here).parts
        return (
            FOLDERS.index(folder) if folder in FOLDERS else len(FOLDERS),
            FLOODS.index(item.path.name) if item.path.name in FLOODS else -1,
        )

    items.sort(key=rank)
