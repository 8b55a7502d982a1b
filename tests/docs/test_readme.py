"""Every example of the README is run, twice: by itself, and after all that stand above it, as a reader pastes them."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Block, Page, run_page

README = Page.read(ROOT / "README.md")
MAX_LINES = 250


@pytest.mark.proof
def test_all_blocks_pasted_in_order_come_to_their_end(tmp_path: Path) -> None:
    run_page(README.blocks(), tmp_path)


@pytest.mark.proof
@pytest.mark.parametrize("group", README.groups(), ids=lambda group: f"line-{group[0].line}")
def test_example(group: list[Block], tmp_path: Path) -> None:
    run_page(group, tmp_path)


@pytest.mark.proof
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: it comes with the dev extra")
def test_the_first_example_is_clean_for_mypy_strict(tmp_path: Path) -> None:
    first = README.blocks()[0]
    assert "@app.task" in first.text
    (tmp_path / "first.py").write_text(first.text)
    # The settings are those of the repo, where untyped packages that ledgerq itself uses are named.
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file", "pyproject.toml", "--cache-dir", str(tmp_path)]
    command = [*mypy, str(tmp_path / "first.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_has_examples_and_stays_short() -> None:
    assert any(block.kind == "python" for block in README.blocks())
    assert len(README.text.splitlines()) <= MAX_LINES
