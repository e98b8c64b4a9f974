"""The one limit of everything that waits."""

from __future__ import annotations

from typing import Final

WITHIN_S: Final = 120.0
"""So long that only what never comes takes it, also on one busy core; below the limit of a test in pyproject.toml."""
