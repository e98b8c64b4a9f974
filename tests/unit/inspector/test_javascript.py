"""The parts of the inspector's JavaScript that need no browser, by Node's own test runner: ``tests/javascript``."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

FILES = sorted((Path(__file__).parents[2] / "javascript").glob("*.test.mjs"))


def test_nodes_tests_pass() -> None:
    node = shutil.which("node")
    assert node, "node is missing: sudo apt install npm"
    assert FILES
    # In a zone other than UTC, a time that is formatted in the machine's zone fails.
    environment = os.environ | {"TZ": "Asia/Kolkata"}
    done = subprocess.run([node, "--test", *FILES], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
