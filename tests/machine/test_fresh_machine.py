"""The commands of the README, run on a machine on which nothing is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from docker.local.layout import Layout
from tests.machine.fresh import HERE, Machine, machine, make_base, variables, why_not
from tests.machine.readme import lines_of_readme

INSTALL_S = 1200
DEMO_S = 900
TEST_S = 3600

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
    pytest.mark.timeout(INSTALL_S + DEMO_S + TEST_S + 1800),
]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_commands_of_the_readme_work_on_a_fresh_machine(
    suite: str, tmp_path: Path, tell: Callable[[str], None]
) -> None:
    install, demo, test = lines_of_readme()
    # Its network is this machine's: with the ports of "make up" it would collide with a stack that runs here.
    settings = variables(Layout.free(tmp_path)) | {"CHAT_LOCAL_DATA": ".local/data"}

    def do(fresh: Machine, command: str, seconds: float) -> str:
        status, text, took = fresh.run(command, seconds, HERE)
        tell(f"{suite}: {command}: {took:.0f} s, status {status}")
        assert status == 0, f"{command} ended with {status}, see {fresh.log}:\n{text[-6000:]}"
        return text

    with machine(make_base(suite), suite, **settings) as fresh:
        fresh.clone()
        # There is no sudo, and none is needed: this is root.
        do(fresh, install.replace("sudo ", ""), INSTALL_S)
        text = do(fresh, demo, DEMO_S)
        assert "installing with apt" not in text, "README's line lacks a package"
        assert "Compared with what was sent: each message once" in text
        # The stack that the demo started keeps running meanwhile.
        text = do(fresh, test, TEST_S)
        assert re.search(r"^setup: installing with apt: chromium redis-server prometheus$", text, re.MULTILINE)
        assert re.search(r"^=+ \d+ passed\b", text, re.MULTILINE), text[-2000:]
        do(fresh, "make down", 120)
