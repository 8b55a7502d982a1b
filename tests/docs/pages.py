"""The runner of the runnable blocks of the README and of the pages in docs/.

    ```python                 runs in the page's Python session
    ```python title="x.py"    is written to x.py in the page's folder
    ```console                each line that begins with `$ ` runs in the page's folder, in bash

A command must exit with 0, or with N where a line below it is `# exit N`. Other lines below it are its output,
shortened: each must be found in what the command really says, in this order; `...` stands for anything, and a line that
is only `...` for lines left out. A block whose first line is `# continues` needs the ones before it; in the README all
others also run by themselves. Blocks that hold a snippet mark (`--8<--`) show a file that is tested elsewhere.
"""

import json
import os
import re
import select
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["LIMIT_S", "PROJECT", "ROOT", "Block", "Command", "Page", "Session", "commands", "page_files", "run_page"]

ROOT: Final = Path(__file__).resolve().parents[2]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
LIMIT_S: Final = 120

_BLOCK: Final = re.compile(r"^```(python|console)(?: title=\"([\w./-]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ANY_FENCE: Final = re.compile(r"\s*```\s*(py|python|pycon|console|bash|sh|shell)\b", re.IGNORECASE)
_EXIT: Final = re.compile(r"# exit (\d+)$")


class Block(NamedTuple):
    """A runnable block; `line` is that of its first line of code in its page, `title` the file that it is, or ""."""

    page: str
    kind: str
    line: int
    text: str
    title: str = ""

    @property
    def continues(self) -> bool:
        """Whether it needs the blocks before it."""
        return self.text.startswith("# continues")


class Command(NamedTuple):
    """A command of a console block, the exit code that it must have, and the lines that it must print."""

    line: int
    text: str
    code: int
    shown: tuple[str, ...]


class Page(NamedTuple):
    """A page by its path from the top of the repo, and what stands there."""

    name: str
    text: str

    @classmethod
    def read(cls, file: Path) -> "Page":
        """The page in a file of the repo."""
        return cls(file.relative_to(ROOT).as_posix(), file.read_text("utf-8"))

    def blocks(self) -> list[Block]:
        """The runnable blocks in order."""
        found = []
        for match in _BLOCK.finditer(self.text):
            kind, title, text = match.groups()
            if "--8<--" not in text:
                line = self.text.count("\n", 0, match.start(3)) + 1
                found.append(Block(self.name, kind, line, text, title or ""))
        return found

    def groups(self) -> list[list[Block]]:
        """The blocks, each together with those that continue it."""
        groups: list[list[Block]] = []
        for block in self.blocks():
            if block.continues:
                assert groups, f"{self.name}:{block.line}: continues what?"
                groups[-1].append(block)
            else:
                groups.append([block])
        return groups

    def odd_fences(self) -> list[str]:
        """Blocks that would not be run, since their fence is indented or misspelt: examples that can rot."""
        seen = {self.text.count("\n", 0, match.start()) + 1 for match in _BLOCK.finditer(self.text)}
        return [
            f"{self.name}:{number}: {line.strip()} is not run; write ```python or ```console"
            for number, line in enumerate(self.text.splitlines(), 1)
            if _ANY_FENCE.match(line) and number not in seen
        ]


def page_files() -> list[Path]:
    """The README, the other pages at the top, and all of docs/."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
    return [*top, *sorted((ROOT / "docs").rglob("*.md"))]


def commands(block: Block) -> list[Command]:
    """The commands of a console block, each with its continuation lines and what is shown of its output."""
    found: list[Command] = []
    lines = block.text.splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("$ ")]
    for index, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        end = index
        while lines[end].endswith("\\"):
            end += 1
        below = lines[end + 1 : stop]
        codes = [int(match[1]) for line in below if (match := _EXIT.match(line))]
        shown = tuple(line for line in below if line.strip() not in ("", "...") and not _EXIT.match(line))
        text = "\n".join(lines[index : end + 1]).removeprefix("$ ")
        found.append(Command(block.line + index, text, codes[0] if codes else 0, shown))
    return found


def missing_line(shown: tuple[str, ...], said: str) -> str | None:
    """The first line shown that is not in the real output, after those before it; None when all are there."""
    rest = iter(" ".join(line.split()) for line in said.splitlines())
    for line in shown:
        pattern = ".*".join(re.escape(" ".join(part.split())) for part in line.split("..."))
        if not any(re.search(pattern, real) for real in rest):
            return line
    return None


def write_scripts(folder: Path) -> None:
    """The console scripts of pyproject, so that commands run without an install, pipes and all."""
    folder.mkdir()
    for name, target in PROJECT["scripts"].items():
        module, _, function = target.partition(":")
        script = folder / name
        script.write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from {module} import {function}\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    # A link to the interpreter of a virtual environment would not find what is installed there.
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)


def run_console(block: Block, folder: Path, bin_folder: Path) -> None:
    """Run the commands of a block; AssertionError names the one that did not do what the page shows."""
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    plain = {"NO_COLOR": "1", "COLUMNS": "120", "TZ": "UTC", "PYTHONPATH": str(ROOT)}
    env = os.environ | plain | {"PATH": path}
    for line, text, code, shown in commands(block):
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
        said = f"{run.stdout}{run.stderr}"
        where = f"{block.page}:{line}: `{text}`"
        assert run.returncode == code, f"{where} exited with {run.returncode}, not {code}\n{said}"
        missing = missing_line(shown, said)
        assert missing is None, f"{where} does not say {missing!r}, or not there:\n{said}"


_SESSION: Final = """
import json, os, sys, types
sys.path[:0] = ["", sys.argv[1]]
module = sys.modules["__main__"] = types.ModuleType("__main__")
for line in sys.stdin:
    page, number, text = json.loads(line)
    exec(compile("\\n" * (number - 1) + text, sys.argv[1] + "/" + page, "exec"), module.__dict__)
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
        self._child.stdin.write(json.dumps([block.page, block.line, block.text]) + "\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self._ended], [], [], limit_s)
        assert ready, f"{block.page}:{block.line}: this block is not at its end after {limit_s} s"
        assert os.read(self._ended, 1) == b".", f"{block.page}:{block.line}: {self._said.read_text('utf-8')}"


@contextmanager
def python_session(folder: Path, said: Path) -> Iterator[Session]:
    """Blocks run in the folder; what they print goes into the file."""
    ended, ending = os.pipe()
    command = [sys.executable, "-c", _SESSION, str(ROOT), str(ending)]
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


def run_page(blocks: list[Block], scratch: Path) -> None:
    """Run blocks from top to bottom, in one folder and one Python session; each must come to its end."""
    folder = scratch / "folder"
    folder.mkdir()
    write_scripts(scratch / "bin")
    with python_session(folder, scratch / "said.txt") as session:
        for block in blocks:
            if block.title:
                (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
                (folder / block.title).write_text(block.text)
            elif block.kind == "python":
                session.paste(block)
            else:
                run_console(block, folder, scratch / "bin")
