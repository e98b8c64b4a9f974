"""The memory of a process: large buffers that it has freed are the system's again."""

from __future__ import annotations

import subprocess
import sys

# Buffers as of half frames, with 4 MB of something smaller between them that stays.
SCRIPT = """
from pathlib import Path

from chat_streams.runtime import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if {returns}:
    memory.return_large_buffers()
x = bytearray(4 << 20)
del x
before, kept, buffers = resident(), [], []
for _ in range(200):
    buffers.append(bytearray(b"x" * 400_000))
    kept.append(bytearray(b"y" * 20_000))
del buffers
print(resident() - before)
"""


def grown(returns: bool) -> int:
    out = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(returns=returns)], check=True, capture_output=True, text=True
    )
    return int(out.stdout)


def test_large_buffers_go_back_to_the_system() -> None:
    assert grown(returns=True) < 10 * 1024 * 1024
    # Why it is done: with glibc's own rule most of 80 MB stays. Where this fails, it is not needed any more.
    assert grown(returns=False) > 40 * 1024 * 1024
