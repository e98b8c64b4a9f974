"""The library of Redis functions in ``lua/inbox.lua``: its source, and what each function is called in Redis."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

_SOURCE: Final = files("tables").joinpath("lua/inbox.lua").read_text()
# Programs of two versions run side by side during a deploy: each calls the functions it was written for.
_VERSION: Final = hashlib.sha256(_SOURCE.encode()).hexdigest()[:8]
LIBRARY: Final = _SOURCE.replace("name=connect_chat", f"name=connect_chat_{_VERSION}").replace("cc_", f"cc_{_VERSION}_")


def function(name: str) -> str:
    """What a function of ``inbox.lua`` is called in Redis; ``name`` is as in the file, without ``cc_``."""
    return f"cc_{_VERSION}_{name}"
