"""The one time limit for everything that tests wait for."""

from __future__ import annotations

from typing import Final

WITHIN_S: Final = 120.0
"""Seconds that no wait that succeeds needs, even on one busy core; less than a test's timeout in pyproject.toml."""
