"""The client that README.md shows does what its comments say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from docker.local.layout import ROOT
from docker.local.probes import user
from docker.local.temporary_stack import Stack


async def test_the_client_of_the_readme_shows_what_waited(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    bob = user("bob")
    await stack.send(user("alice"), bob, ["one", "two"])
    names: dict[str, Any] = {}
    exec(compile(source.replace("ws://127.0.0.1:8080/v1/connect", stack.url), "README.md", "exec"), names)  # noqa: S102
    await names["main"](stack.token(bob))
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]
