"""Every example of the README is run, twice: by itself, and after all that stand above it, as a reader pastes them."""

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


def test_the_first_example_is_what_mypy_looks_at() -> None:
    first = README.blocks()[0]
    assert "@app.task" in first.text
    checked = Path(__file__).with_name("first_example.py").read_text("utf-8")
    assert checked.partition('"""\n\n')[2] == first.text


def test_readme_has_examples_and_stays_short() -> None:
    assert any(block.kind == "python" for block in README.blocks())
    assert len(README.text.splitlines()) <= MAX_LINES
