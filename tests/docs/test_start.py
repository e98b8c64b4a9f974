"""The commands with which the README begins, as the test of a fresh machine runs them."""

from __future__ import annotations

from tests.machine.readme import lines_of_readme


def test_readme_has_a_line_to_install_and_two_commands() -> None:
    install, *commands = lines_of_readme()
    assert "apt install" in install
    assert commands == ["make demo", "make test"]
