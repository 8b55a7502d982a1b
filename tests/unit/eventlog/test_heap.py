"""The heap of a program: what large blocks took is given back."""

import subprocess
import sys

import pytest

MB = 1_000_000
# The first block that is freed teaches glibc to keep such blocks. Small ones between the others hold the heap's end.
PROGRAM = f"""
import sys
from pathlib import Path
from ledgerq.eventlog.runtime.heap import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "give back":
    give_back_large_blocks()
block = b"x" * (30 * {MB})
del block
before = resident()
blocks, between = [], []
for _ in range(8):
    blocks.append(b"x" * (8 * {MB}))
    between.append(b"x" * 100_000)
    blocks.append(b"x" * (8 * {MB}))
del blocks
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it concerns glibc")
def test_freed_blocks_of_megabytes_are_not_kept() -> None:
    assert _kept("give back") < 10 * MB


def _kept(how: str) -> int:
    command = [sys.executable, "-c", PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)
