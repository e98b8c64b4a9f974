"""A process shows the count of acknowledged messages only if it acknowledges some."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = "import sys, {module}; sys.exit('tables.acknowledged' in sys.modules)"


@pytest.mark.parametrize(
    ("module", "counts"),
    [("gateway.app", True), ("chat_streams.notification", True), ("chat_streams.messaging", False)],
)
def test_a_process_counts_what_it_acknowledges(module: str, counts: bool) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(module=module)], check=False)
    assert done.returncode == counts
