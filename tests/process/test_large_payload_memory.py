"""The memory of a process does not grow with a payload that it streams."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SIZE_MIB = 256
GROWTH_MIB = 48


@pytest.mark.proof
def test_memory_is_flat_however_large_a_payload_is(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "tests.process.large_payload_child", str(tmp_path / "store"), str(SIZE_MIB)]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    told = json.loads(ran.stdout)
    assert told["read_mib"] == SIZE_MIB
    assert told["grown_mib"] < GROWTH_MIB, told
