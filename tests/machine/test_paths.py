"""The local stack of another user, in folders whose names have what shells and files of configuration split at."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from docker.local.layout import ROOT, Layout
from tests.machine.fresh import variables

ODD: Final = '\u00fc ,5%d "q" o\'b \\n #1 ;x $H (y) &!'
"""Space, umlaut, comma, percent sign, quotes and backslash, and more; short, because a socket's path is."""
NOBODY: Final = 65_534
PARTS: Final = 8
STEP_S: Final = 300
LINKS: Final = (".local/jars", "chat_streams/inspector/web/node_modules")
"""Folders that "make setup" has filled here; the links to them have odd paths, too."""
AS_NOBODY: Final = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []

pytestmark = [pytest.mark.long, pytest.mark.timeout(4 * STEP_S)]
Make = Callable[..., str]


def _python() -> str:
    """Return the path of a Python like this one which that user may run: this one may be in root's home."""
    version = "import sys; print(sys.version_info[:2])"
    for path in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            # By a shell, since setpriv itself may start what the user may not.
            command = [*AS_NOBODY, "sh", "-c", '"$0" -c "$1"', path, version]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            if done.stdout.strip() == str(sys.version_info[:2]):
                return path
    raise AssertionError("no Python of this version that another user may run")


def _leave_out(folder: str, names: list[str]) -> set[str]:
    installed = {Path(link).name for link in LINKS} | {".local", ".venv", "__pycache__"}
    return {name for name in names if name in installed or name.startswith(".git") or name.endswith("_cache")}


@pytest.fixture
def checkout() -> Iterator[Path]:
    """Make a checkout in an odd folder, which belongs to who runs the stack."""
    place = Path(tempfile.mkdtemp(prefix="odd-", dir="/tmp"))
    try:
        place.chmod(0o755)
        checkout = place / ODD / "c"
        shutil.copytree(ROOT, checkout, ignore=_leave_out)
        for link in LINKS:
            (checkout / link).parent.mkdir(exist_ok=True)
            (checkout / link).symlink_to((ROOT / link).resolve())
        subprocess.run([_python(), "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
        (packages,) = (checkout / ".venv").glob("lib/python*/site-packages")
        (packages / "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        (place / ODD / "home").mkdir()
        if os.geteuid() == 0:
            subprocess.run(["chown", "-hR", f"{NOBODY}:{NOBODY}", place], check=True)
        yield checkout
    finally:
        shutil.rmtree(place, ignore_errors=True)


@pytest.fixture
def make(checkout: Path, tmp_path: Path) -> Iterator[Make]:
    """Return a function that runs a target of make, and stop the stack afterwards."""
    own = variables(Layout.free(tmp_path))
    del own["CHAT_LOCAL_DATA"]
    # In the locale C, Java can open no file with an umlaut in its path.
    environment = own | {"PATH": os.environ["PATH"], "HOME": str(checkout.parent / "home"), "LC_ALL": "C"}

    def run(*arguments: str, text: str = "") -> str:
        # What setup would install is there.
        command = [*AS_NOBODY, "make", "--no-print-directory", "-o", "setup", *arguments]
        done = subprocess.run(
            command, cwd=checkout, env=environment, input=text, capture_output=True, text=True, timeout=STEP_S
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    try:
        yield run
    finally:
        run("down")


def test_the_stack_runs_in_a_folder_with_any_characters_for_a_user_who_is_not_root(checkout: Path, make: Make) -> None:
    assert "everything is up after" in make("up")
    assert "everything is up already" in make("up")
    assert make("status").count(" ready ") == PARTS
    assert "\u2713 to bob: hello" in make("chat", "USER=alice", text="bob hello\n")
    assert "alice: hello" in make("chat", "USER=bob")
    assert (checkout / ".local/data/kafka/storage/meta.properties").exists()
