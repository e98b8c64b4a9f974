"""The set-up names in one line what is missing, and installs it only where it may: run with stubs for all commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[4] / "docker" / "local" / "install-prerequisites.sh"
TOOLS = ("basename", "cat", "env", "grep", "head", "mktemp", "rm", "sed", "sh")
PRESENT = {
    "python3": "exit 0",
    "java": """echo 'openjdk version "17.0.15" 2025-04-15' >&2""",
    "mvn": "",
    "npm": "",
    "chromium": "",
    "redis-server": "",
    "promtool": "",
    "git": "",
    "faketime": "",
}
COMMAND_OF = {"default-jre-headless": "java", "maven": "mvn", "prometheus": "promtool"}


class Machine:
    """A folder of commands which is all of PATH; ``apt-get`` adds to it what it installs and logs its arguments."""

    def __init__(self, folder: Path, user: int) -> None:
        self.path = folder / "bin"
        self.log = folder / "apt.log"
        self.os_release = folder / "os-release"
        self.os_release.write_text("ID=debian\n")
        self.path.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (self.path / tool).symlink_to(found)
        for name, body in PRESENT.items():
            self.add(name, body)
        self.add("id", f"echo {user}")

    def add(self, name: str, body: str) -> None:
        """Add a command with a shell script as its body."""
        (self.path / name).write_text(f"#!/bin/sh\n{body}\n")
        (self.path / name).chmod(0o755)

    def add_apt(self, *packages: str, works: bool = True) -> None:
        """Add an ``apt-get`` that can install these packages, or one that fails."""
        stock = self.path.parent / "stock"
        stock.mkdir(exist_ok=True)
        made = ""
        for package in packages:
            command = COMMAND_OF.get(package, package)
            shutil.copy(self.path / command, stock)
            made += f'case "$*" in *install*{package}*) /bin/cp {stock}/{command} {self.path} ;; esac\n'
        self.add("apt-get", f'echo "$RUNLEVEL|$*" >>{self.log}\n{made if works else "echo no route >&2; exit 100"}')

    def remove(self, *names: str) -> None:
        """Remove commands."""
        for name in names:
            (self.path / name).unlink()

    def run(self, *arguments: str, python: str = "python3") -> tuple[int, list[str]]:
        """Run the script; returns its exit status and its lines."""
        done = subprocess.run(
            [str(SCRIPT), *arguments],
            env={"PATH": str(self.path), "PYTHON": python, "OS_RELEASE": str(self.os_release)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr.splitlines()

    def installed(self) -> list[str]:
        """Return the arguments of each install, and its run level."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if " install " in line]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a machine of a user who may not become root, with everything that is needed."""
    machine = Machine(tmp_path, user=1000)
    machine.add_apt()
    machine.add("sudo", "exit 1")
    return machine


@pytest.mark.parametrize("level", [(), ("test",), ("faults",)])
def test_nothing_is_said_where_all_is_there(machine: Machine, level: tuple[str, ...]) -> None:
    assert machine.run(*level) == (0, [])
    assert not machine.log.exists()


def test_without_root_one_line_says_the_command(machine: Machine) -> None:
    machine.remove("java", "mvn", "npm", "python3", "chromium")
    assert machine.run() == (
        1,
        ["missing here: sudo apt install --no-install-recommends python3 python3-venv default-jre-headless maven npm"],
    )
    assert not machine.log.exists()


def test_what_only_tests_need_is_looked_for_by_them_alone(machine: Machine) -> None:
    machine.remove("chromium", "redis-server", "promtool")
    assert machine.run() == (0, [])
    missing = (1, ["missing here: sudo apt install --no-install-recommends chromium redis-server prometheus"])
    assert machine.run("test") == missing
    assert machine.run("faults") == missing


def test_only_the_long_tests_need_git_and_faketime(machine: Machine) -> None:
    machine.remove("git", "faketime")
    assert machine.run("test") == (0, [])
    assert machine.run("faults") == (1, ["missing here: sudo apt install --no-install-recommends git faketime"])


def test_valkey_is_as_good_as_redis(machine: Machine) -> None:
    machine.remove("redis-server")
    machine.add("valkey-server", "")
    assert machine.run("test") == (0, [])


@pytest.mark.parametrize("sudo", [False, True])
def test_as_root_or_by_sudo_what_is_missing_is_named_and_installed(tmp_path: Path, sudo: bool) -> None:
    machine = Machine(tmp_path, user=1000 if sudo else 0)
    if sudo:
        machine.add("sudo", f'[ "$1" = -n ] || exit 1\nshift\necho sudo >>{tmp_path}/sudo.log\nexec "$@"')
        machine.add("true", "")
    machine.add_apt("chromium", "prometheus", "default-jre-headless")
    machine.remove("chromium", "promtool", "java")
    assert machine.run("test") == (0, ["setup: installing with apt: default-jre-headless chromium prometheus"])
    (call,) = machine.installed()
    assert call.startswith("1|"), "in another run level packages start their services"
    assert call.endswith("install -y -qq --no-install-recommends default-jre-headless chromium prometheus")
    assert (tmp_path / "sudo.log").exists() == sudo


def test_what_apt_says_is_shown_where_it_fails(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.add_apt(works=False)
    machine.remove("npm")
    status, lines = machine.run()
    assert status == 1
    assert lines == [
        "setup: installing with apt: npm",
        "no route",
        "setup: apt could not install npm: see above",
    ]


def test_without_apt_the_command_is_said(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.remove("npm")
    assert machine.run() == (1, ["missing here: sudo apt install --no-install-recommends npm"])


def test_what_no_package_mends_is_said_before_anything_is_installed(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.add_apt("npm")
    machine.remove("npm")
    machine.add("java", """echo 'openjdk version "1.8.0_402"' >&2""")
    status, lines = machine.run()
    assert status == 1
    assert lines[0].startswith("java is version 1, 17 or newer is needed")
    assert lines[1:] == ["missing here: sudo apt install --no-install-recommends npm"]
    assert not machine.log.exists()


def test_ubuntu_has_its_browser_from_a_snap(tmp_path: Path) -> None:
    machine = Machine(tmp_path, user=0)
    machine.add_apt("chromium")
    machine.remove("chromium")
    machine.os_release.write_text("NAME=Ubuntu\nID=ubuntu\n")
    status, (line,) = machine.run("test")
    assert status == 1
    assert line == "chromium is missing, which Ubuntu has as a snap only: sudo snap install chromium"


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (None, "PYTHON=python3.13 does not exist: name a Python of 3.11 or newer"),
        ("echo 'pyenv: no such version' >&2; exit 127", "PYTHON=python3.13 does not run: pyenv: no such version"),
        (
            'case "$*" in *"(3, 11)"*) exit 1 ;; -V) echo Python 3.9.2 ;; esac',
            "python3.13 is Python 3.9.2, 3.11 or newer is needed: make PYTHON=python3.11 ..., or another",
        ),
        (
            'case "$*" in *ensurepip*) exit 1 ;; esac',
            "python3.13 cannot make virtual environments (it lacks the module venv or ensurepip): name another PYTHON",
        ),
    ],
)
def test_a_python_that_will_not_do_is_named(machine: Machine, body: str | None, line: str) -> None:
    if body is not None:
        machine.add("python3.13", body)
    assert machine.run(python="python3.13") == (1, [line])
