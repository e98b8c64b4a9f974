"""Python calls the functions that the Lua library registers, and no others."""

from __future__ import annotations

import re

from docker.local.layout import ROOT
from tables.functions import LIBRARY, function


def test_every_function_that_is_called_is_registered_and_the_other_way_round() -> None:
    sources = [
        path.read_text() for folder in ("tables", "gateway", "chat_streams") for path in (ROOT / folder).rglob("*.py")
    ]
    called = {name for text in sources for name in re.findall(r'function\("([a-z_]+)"\)', text)}
    registered = re.findall(r"register\('(\w+)'", LIBRARY)
    assert sorted(function(name) for name in called) == sorted(registered)
