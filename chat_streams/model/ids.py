"""Ids of users, devices and messages."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeGuard

from msgspec import Meta

MAX_ID: Final = 128
_CHARACTERS: Final = r"[A-Za-z0-9._~@:-]+"
_matches = re.compile(_CHARACTERS, re.ASCII).fullmatch

# \Z instead of $: with $, an id that ends in a line feed would pass.
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, pattern=rf"\A{_CHARACTERS}\Z")]
"""The type of an id, with the constraints that msgspec checks."""


def is_id(value: object) -> TypeGuard[str]:
    """Return whether a value is a user, device or message id: 1-128 characters of ``A-Z a-z 0-9 . _ ~ @ : -``."""
    return isinstance(value, str) and 1 <= len(value) <= MAX_ID and _matches(value) is not None
