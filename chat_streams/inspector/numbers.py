"""Numbers that a request brings as text."""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = re.compile(r"[0-9]{1,15}", re.ASCII)


def number_of(text: str) -> int | None:
    """Return the number that a text is; ``None`` for one that is none, or has more than 15 digits.

    ``str.isdigit`` takes more: ``int`` refuses some of its digits (``²``), and thousands of them.
    """
    return int(text) if _NUMBER.fullmatch(text) else None
