"""mypy --strict agrees with the types that tests/repo/typing_api.py asserts of the public face."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.proof
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: it comes with the dev extra")
def test_the_public_face_is_typed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", "--cache-dir", str(tmp_path)]
    done = subprocess.run(
        [*command, "tests/repo/typing_api.py"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
