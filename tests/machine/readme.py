"""The commands with which the README begins."""

from __future__ import annotations

import re

from docker.local.layout import ROOT


def lines_of_readme() -> list[str]:
    """Return the commands of the README's section Start, in order, without the comments beside them."""
    section = re.search(r"^## Start\n(.*?)^## ", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None, "README.md has no section Start"
    commands = re.search(r"^```sh\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert commands is not None, "the section Start of README.md has no commands"
    return [line for line in (re.sub(r"\s+#.*", "", line) for line in commands[1].splitlines()) if line]
