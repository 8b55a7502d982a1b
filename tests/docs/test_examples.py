"""Each file in examples/ runs to its end by itself, and stands on its page."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import LIMIT_S, ROOT

FILES = sorted((ROOT / "examples").glob("*.py"))
# The others are for `make proof`: each is a process of its own.
QUICK = {"quickstart", "worker"}
PAGE = (ROOT / "docs" / "examples.md").read_text("utf-8")


@pytest.mark.parametrize(
    "file",
    [pytest.param(file, marks=[] if file.stem in QUICK else [pytest.mark.proof]) for file in FILES],
    ids=lambda file: file.stem,
)
def test_an_example_runs(file: Path, tmp_path: Path) -> None:
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, f"{file.name}: {run.stdout}{run.stderr}"
    assert list(tmp_path.iterdir()) == [], f"{file.name} leaves files behind"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_says_what_it_shows_and_is_on_the_page(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse(file.read_text("utf-8")))
    assert docstring
    assert f'--8<-- "examples/{file.name}"' in PAGE
    assert docstring in PAGE
