"""Every example of the README is run, twice: by itself, and after all that stand above it, as a reader pastes them.

By itself, a ```python block runs in a fresh namespace and an empty folder. In a ```console block the lines that begin
with `$ ledgerq ` or `$ rebuild-projections ` run in an empty folder, in order, and must exit with 0, or with N where
the next line is `# exit N`; other lines are what people see, and are not compared. A block whose first line is
`# continues` goes on in the namespace and the folder of the runnable block before it, whichever kind that was.

From top to bottom, all blocks share one folder and one Python session. Either way each must end within LIMIT_S.
"""

import json
import os
import re
import select
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LIMIT_S = 120

BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A runnable block; `line` is that of its first line of code in the README."""

    kind: str
    line: int
    text: str


class Command(NamedTuple):
    """A command of a console block, and the exit code that it must have."""

    line: int
    text: str
    code: int


def blocks(readme: str) -> list[list[Block]]:
    """The runnable blocks in order, each together with those that continue it."""
    groups: list[list[Block]] = []
    for match in BLOCK.finditer(readme):
        kind, text = match.groups()
        block = Block(kind, readme.count("\n", 0, match.start(2)) + 1, text)
        if not text.startswith("# continues"):
            groups.append([block])
        else:
            assert groups, f"README.md:{block.line}: continues what?"
            groups[-1].append(block)
    return groups


def commands(block: Block) -> list[Command]:
    """The commands of a console block that are ours, each with its continuation lines."""
    found: list[Command] = []
    lines = block.text.splitlines()
    for index, line in enumerate(lines):
        if not re.match(r"\$ (ledgerq|rebuild-projections)( |$)", line):
            continue
        end = index
        while lines[end].endswith("\\"):
            end += 1
        expected = re.match(r"# exit (\d+)", lines[end + 1]) if end + 1 < len(lines) else None
        text = "\n".join(lines[index : end + 1]).removeprefix("$ ")
        found.append(Command(block.line + index, text, int(expected[1]) if expected else 0))
    return found


def write_scripts(folder: Path) -> None:
    """The console scripts of pyproject, so that the README's commands run without an install, pipes and all."""
    folder.mkdir()
    for name, target in PROJECT["scripts"].items():
        module, _, function = target.partition(":")
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from {module} import {function}\nsys.exit({function}())\n"
        )
        script.chmod(0o755)


def run_python(block: Block, module: types.ModuleType) -> None:
    # Empty lines first, so that a traceback names the line of the README.
    code = compile("\n" * (block.line - 1) + block.text, str(ROOT / "README.md"), "exec")
    exec(code, module.__dict__)


def run_console(block: Block, folder: Path, bin_folder: Path) -> None:
    env = os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1", "COLUMNS": "120"}
    for line, text, code in commands(block):
        run = subprocess.run(
            ["bash", "-o", "pipefail", "-c", text],
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_S,
            capture_output=True,
            text=True,
            check=False,
        )
        said = f"README.md:{line}: `{text}` exited with {run.returncode}, not {code}\n{run.stdout}{run.stderr}"
        assert run.returncode == code, said


SESSION = """
import json, os, sys, types
sys.path.insert(0, sys.argv[1])
module = sys.modules["__main__"] = types.ModuleType("__main__")
for line in sys.stdin:
    number, text = json.loads(line)
    exec(compile("\\n" * (number - 1) + text, sys.argv[1] + "/README.md", "exec"), module.__dict__)
    sys.stdout.flush()
    os.write(int(sys.argv[2]), b".")
"""


class Session:
    """A Python session in a process of its own, into which blocks are pasted."""

    def __init__(self, child: "subprocess.Popen[str]", ended: int, said: Path) -> None:
        self._child = child
        self._ended = ended
        self._said = said

    def paste(self, block: Block, limit_s: float = LIMIT_S) -> None:
        """Run a block to its end."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([block.line, block.text]) + "\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._ended], [], [], limit_s)
        assert ready, f"README.md:{block.line}: this block is not at its end after {limit_s} s"
        assert os.read(self._ended, 1) == b".", f"README.md:{block.line}: {self._said.read_text('utf-8')}"


@contextmanager
def python_session(folder: Path, said: Path) -> Iterator[Session]:
    """Blocks run in the folder; what they print goes into the file."""
    ended, ending = os.pipe()
    command = [sys.executable, "-c", SESSION, str(ROOT), str(ending)]
    try:
        with said.open("w") as out:
            child = subprocess.Popen(
                command, cwd=folder, stdin=subprocess.PIPE, stdout=out, stderr=out, text=True, pass_fds=[ending]
            )
        os.close(ending)
        with child:
            try:
                yield Session(child, ended, said)
            finally:
                child.kill()
    finally:
        os.close(ended)


def test_all_blocks_pasted_in_order_come_to_their_end(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_scripts(tmp_path / "bin")
    with python_session(folder, tmp_path / "said.txt") as session:
        for block in (block for group in blocks(README) for block in group):
            if block.kind == "python":
                session.paste(block)
            else:
                run_console(block, folder, tmp_path / "bin")


@pytest.mark.proof
@pytest.mark.parametrize("group", blocks(README), ids=lambda group: f"line-{group[0].line}")
def test_example(group: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_scripts(tmp_path / "bin")
    monkeypatch.chdir(folder)
    # As in a script: `if __name__ == "__main__"` is true, and what looks a class up by its module finds it.
    module = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    for block in group:
        if block.kind == "python":
            run_python(block, module)
        else:
            run_console(block, folder, tmp_path / "bin")


def test_readme_has_examples() -> None:
    assert any(block.kind == "python" for group in blocks(README) for block in group)


def test_every_fence_is_understood() -> None:
    """A block that this file would not see, since its fence is indented or misspelt, is an example that can rot."""
    fences = [
        (number, line.strip())
        for number, line in enumerate(README.splitlines(), 1)
        if re.match(r"\s*```\s*(py|python|console|bash|sh|shell)\b", line, re.IGNORECASE)
    ]
    seen = {block.line - 1 for group in blocks(README) for block in group}
    bad = [f"README.md:{number}: {fence} is not run; write ```python or ```console" for number, fence in fences]
    assert not [text for (number, _), text in zip(fences, bad, strict=True) if number not in seen], "\n".join(bad)


def test_every_dependency_has_its_reason() -> None:
    section = README.split("## Dependencies and why")[1].split("\n## ")[0]
    extras = [line for extra in ("test", "dev") for line in PROJECT["optional-dependencies"][extra]]
    runtime = [re.split(r"[\[<>=~! ]", line)[0] for line in PROJECT["dependencies"]]
    names = [re.split(r"[\[<>=~! ]", line)[0] for line in extras if not re.search("^types-|-types|-stubs", line)]
    bad = [name for name in runtime if not re.search(rf"^\| `{name}` \| \S", section, re.MULTILINE)]
    bad += [name for name in names if name != "ledgerq" and f"`{name}" not in section]
    assert not bad, f"README.md: no reason given for {bad}"


# The runner itself


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("import time\nprint('once', flush=True)\ntime.sleep(3600)\n", "README.md:7: this block is not at its end"),
        ("x = 1\nraise ValueError(x)\n", r'README.md:7: (.|\n)*README.md", line 8, in <module>(.|\n)*ValueError: 1'),
    ],
)
def test_a_block_that_does_not_end_or_fails_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with python_session(tmp_path, tmp_path / "said.txt") as session:
        session.paste(Block("python", 1, "import os\nassert __name__ == '__main__'\n"))
        with pytest.raises(AssertionError, match=complaint):
            session.paste(Block("python", 7, text), limit_s=1 if "sleep" in text else LIMIT_S)


def test_blocks_that_continue_join_the_one_before() -> None:
    readme = (
        "a\n```python\nx = 1\n```\n\n```console\n# continues\n$ ledgerq x\n```\n```python\ny = 1\n```\n```text\n```\n"
    )
    first, second = blocks(readme)
    assert [(block.kind, block.line) for block in first] == [("python", 3), ("console", 7)]
    assert [(block.kind, block.line) for block in second] == [("python", 11)]


def test_commands_know_their_exit_code() -> None:
    text = "$ ledgerq a \\\n    b\n# exit 3\nsome output\n$ make demo\n$ rebuild-projections x | head\nledgerq z\n"
    expected = [Command(10, "ledgerq a \\\n    b", 3), Command(15, "rebuild-projections x | head", 0)]
    assert commands(Block("console", 10, text)) == expected
