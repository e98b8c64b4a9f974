"""The library of Redis functions in ``lua/inbox.lua``: its source, and the names of its functions in Redis."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

_SOURCE: Final = files("tables").joinpath("lua/inbox.lua").read_text()
# Two versions of the programs run side by side during a deploy; each calls the functions of its own version.
_VERSION: Final = hashlib.sha256(_SOURCE.encode()).hexdigest()[:8]
LIBRARY: Final = _SOURCE.replace("name=connect_chat", f"name=connect_chat_{_VERSION}").replace("cc_", f"cc_{_VERSION}_")


NAMES: Final = "connect_chat_*"
"""The pattern of the names of all versions of the library."""
NAME: Final = f"connect_chat_{_VERSION}"


def counter_of(library: str) -> str:
    """Return the name of the function that counts the calls of a version, of which ``library`` is the name."""
    return f"cc_{library.removeprefix(NAMES[:-1])}_calls"


def function(name: str) -> str:
    """Return the name in Redis of a function of ``inbox.lua``; ``name`` is as in the file, without ``cc_``."""
    return f"cc_{_VERSION}_{name}"
