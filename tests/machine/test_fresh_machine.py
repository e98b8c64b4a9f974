"""README's own lines, run on a machine on which nothing is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from docker.local.layout import ROOT, Layout
from tests.machine.fresh import HERE, Machine, machine, make_base, variables, why_not

INSTALL_S = 1200
DEMO_S = 900
TEST_S = 3600

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(bool(why_not()), reason=why_not() or ""),
    pytest.mark.timeout(INSTALL_S + DEMO_S + TEST_S + 1800),
]


def lines_of_readme() -> list[str]:
    """Return the commands of README's section Start, without what is said beside them."""
    start = re.search(r"^## Start\n+```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert start is not None
    return [line for line in (re.sub(r"\s+#.*", "", line) for line in start[1].splitlines()) if line]


def test_readme_has_a_line_to_install_and_two_commands() -> None:
    install, *commands = lines_of_readme()
    assert "apt install" in install
    assert commands == ["make demo", "make test"]


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_lines_of_readme_do_everything(suite: str, tmp_path: Path, tell: Callable[[str], None]) -> None:
    install, demo, test = lines_of_readme()
    # Its network is this machine's: with the ports of make up it would meet a stack that runs here.
    settings = variables(Layout.free(tmp_path)) | {"CHAT_LOCAL_DATA": ".local/data"}

    def do(fresh: Machine, command: str, seconds: float) -> str:
        status, text, took = fresh.run(command, seconds, HERE)
        tell(f"{suite}: {command}: {took:.0f} s, status {status}")
        assert status == 0, f"{command} ended with {status}, see {fresh.log}:\n{text[-6000:]}"
        return text

    with machine(make_base(suite), suite, **settings) as fresh:
        fresh.clone()
        # There is no sudo, and no need of it: this is root.
        do(fresh, install.replace("sudo ", ""), INSTALL_S)
        text = do(fresh, demo, DEMO_S)
        assert "installing with apt" not in text, "README's line lacks a package"
        assert "Compared with what was sent: each message once" in text
        # What it started stays up meanwhile.
        text = do(fresh, test, TEST_S)
        assert re.search(r"^setup: installing with apt: chromium redis-server prometheus$", text, re.MULTILINE)
        assert re.search(r"^=+ \d+ passed\b", text, re.MULTILINE), text[-2000:]
        do(fresh, "make down", 120)
