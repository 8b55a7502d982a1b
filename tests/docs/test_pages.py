"""The runner of the pages' blocks itself: it must notice an example that does not do what its page shows."""

from pathlib import Path

import pytest

from tests.docs.pages import LIMIT_S, Block, Command, Page, commands, missing_line, python_session, run_page


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import time\nprint('once', flush=True)\ntime.sleep(3600)\n", "x.md:7: this block is not at its end"),
        ("x = 1\nraise ValueError(x)\n", r'x.md:7: (.|\n)*x.md", line 8, in <module>(.|\n)*ValueError: 1'),
    ],
)
def test_a_block_that_does_not_end_or_fails_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with python_session(tmp_path, tmp_path / "said.txt") as session:
        session.paste(Block("x.md", "python", 1, "import os\nassert __name__ == '__main__'\n"))
        with pytest.raises(AssertionError, match=complaint):
            session.paste(Block("x.md", "python", 7, text), limit_s=1 if "sleep" in text else LIMIT_S)


def test_blocks_that_continue_join_the_one_before() -> None:
    text = (
        "a\n```python\nx = 1\n```\n\n```console\n# continues\n$ ledgerq x\n```\n```python\ny = 1\n```\n```text\n```\n"
    )
    first, second = Page("x.md", text).groups()
    assert [(block.kind, block.line) for block in first] == [("python", 3), ("console", 7)]
    assert [(block.kind, block.line) for block in second] == [("python", 11)]


def test_a_block_with_a_title_is_a_file_for_those_below_it(tmp_path: Path) -> None:
    text = '```python title="mine.py"\nX = 7\n```\n```python\nfrom mine import X\nassert X == 7\n```\n'
    text += "```console\n$ python -c 'import mine; print(mine.X)'\n7\n```\n"
    run_page(Page("x.md", text).blocks(), tmp_path)


def test_blocks_that_show_a_tested_file_are_left_alone() -> None:
    assert Page("x.md", '```python\n--8<-- "examples/quickstart.py"\n```\n').blocks() == []


def test_fences_that_would_not_be_run_are_told() -> None:
    text = "```bash\nls\n```\n ```python\nx\n ```\n```Python\n```\n```console\n$ true\n```\n```text\n```\n"
    assert [line.split(": ")[0] for line in Page("x.md", text).odd_fences()] == ["x.md:1", "x.md:4", "x.md:7"]


def test_commands_know_their_exit_code_and_what_they_say() -> None:
    text = "$ ledgerq a \\\n    b\nsome output\n...\n# exit 3\n$ rebuild-projections x | head\nledgerq z\n"
    expected = [Command(10, "ledgerq a \\\n    b", 3, ("some output",))]
    expected += [Command(15, "rebuild-projections x | head", 0, ("ledgerq z",))]
    assert commands(Block("x.md", "console", 10, text)) == expected


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        (("one", "three"), None),
        (("o...e", "three  three 3"), None),
        (("three", "one"), "one"),
        (("one", "four"), "four"),
        (("one 1",), "one 1"),
    ],
)
def test_lines_shown_must_be_said_in_their_order(shown: tuple[str, ...], missing: str | None) -> None:
    assert missing_line(shown, "one\ntwo\nthree     three 3\n") == missing


def test_a_command_that_fails_or_says_something_else_is_named(tmp_path: Path) -> None:
    wrong = {"$ false\n": "exited with 1, not 0", "$ true\n# exit 2\n": "exited with 0, not 2", "$ echo a\nb\n": "'b'"}
    for number, (text, complaint) in enumerate(wrong.items()):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        with pytest.raises(AssertionError, match=complaint):
            run_page([Block("x.md", "console", 1, text)], scratch)
