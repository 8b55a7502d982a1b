"""The package as shipped: the console scripts, the declared dependencies, and (slowly) the wheel itself."""

import ast
import importlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from ledgerq.eventlog.slate.native_binding import is_built as lanes_built
from ledgerq.projections.job_table import is_built as table_built
from ledgerq.tools.monitoring import generate

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("eventlog", "projections", "worker", "tools")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("script", sorted(PROJECT["scripts"]))
def test_console_script_has_a_target(script: str) -> None:
    module, _, name = PROJECT["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), name)), f"{script} points at nothing"


def test_every_import_is_a_declared_dependency() -> None:
    extras = PROJECT["optional-dependencies"]
    wanted = [
        *PROJECT["dependencies"],
        *(one for name in ("otel", "trust", "serve", "client", "django") for one in extras[name]),
    ]
    declared = {re.split(r"[\[<>=~! ]", line)[0].replace("_", "-").lower() for line in wanted}
    owners = importlib.metadata.packages_distributions()
    bad = []
    for file in (file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            else:
                continue
            for top in {module.split(".")[0] for module in modules} - {"ledgerq"} - sys.stdlib_module_names:
                if not {owner.replace("_", "-").lower() for owner in owners.get(top, [])} & declared:
                    bad.append(f"{file.relative_to(ROOT)}:{node.lineno}: {top} is not in pyproject's dependencies")
    assert not bad, "\n" + "\n".join(bad)


def test_programs_for_development_alone_are_no_part_of_the_package() -> None:
    for name in ("simulation", "soak", "dashboard_picture"):
        assert (ROOT / "tests" / name / "__main__.py").is_file()
    words = re.compile(r"simul|sim_|soak|picture|draw")
    shipped = [file.relative_to(ROOT).as_posix() for layer in LAYERS for file in (ROOT / layer).rglob("*")]
    assert not [name for name in shipped if words.search(name) and "__pycache__" not in name]


def test_the_reference_model_knows_nothing_of_the_code_that_it_judges() -> None:
    for name in ("bulks", "job", "measures", "records"):
        text = (ROOT / "tests" / "model" / f"{name}.py").read_text("utf-8")
        names = set(re.findall(r"^(?:from|import) ((?:ledgerq|tests)\S*)", text, re.MULTILINE))
        assert not {name for name in names if name != "ledgerq.eventlog.events" and not name.startswith("tests.model.")}


@pytest.mark.proof
def test_wheel_holds_the_four_layers_and_no_tests(tmp_path: Path) -> None:
    # From a copy: setuptools would take modules that are long gone from a left-over build/ folder.
    skip = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "__pycache__", "*.so")
    shutil.copytree(ROOT, tmp_path / "source", symlinks=True, ignore=skip)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(tmp_path / "source"),
    ]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    [wheel] = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        compiled = [names.pop(names.index(name)) for name in names if name.endswith(".so")]
        [scripts] = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry_points = archive.read(scripts).decode()
    modules = {f"ledgerq/{file.relative_to(ROOT)}" for layer in LAYERS for file in (ROOT / layer).rglob("*.py")}
    data = {f"ledgerq/tools/monitoring/files/{name}" for name in generate.NAMES}
    own = ("__init__.py", "events.py", "sync.py", "testing.py", "pytest_plugin.py", "py.typed")
    assert set(names) == modules | data | {f"ledgerq/{name}" for name in own}
    # Where there is no compiler, the package is whole without it.
    parts = {"eventlog/slate/_rows": lanes_built(), "projections/_packed": table_built()}
    assert sorted(compiled) == [f"ledgerq/{name}.abi3.so" for name, is_built in parts.items() if is_built]
    assert "-cp311-abi3-" in wheel.name
    assert len(names) == len(set(names)), "a file is in the wheel twice"
    for script, target in PROJECT["scripts"].items():
        assert f"{script} = {target}" in entry_points
