"""Style as a test: layers, sizes, docstrings, units, and what may lie where.

Each check is one function from sources to findings ("file:line: what"), and one test that wants no findings. The checks
themselves are tested at the end, on snippets that they must refuse. What is allowed all the same stands in `EXCEPTIONS`
with its reason.
"""

import ast
import fnmatch
import functools
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Layer -> what of ours it may import.
LAYERS = {
    "eventlog": {"eventlog"},
    "projections": {"projections", "eventlog"},
    "worker": {"worker", "projections", "eventlog"},
    "tools": {"tools", "worker", "projections", "eventlog"},
}

MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 70

TOP_LEVEL = {
    *LAYERS,
    *("ledgerq", "tests", ".ci", ".git", ".gitignore", "pyproject.toml", "Makefile"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("docs", "mkdocs.yml", "examples"),
}

# The only modules that may read the system's clock and its source of chance; everything else is handed theirs.
AMBIENT = {"eventlog/clock.py", "eventlog/entropy.py"}

# (name of the check, "file" or "file:name") -> why. An exception that no finding needs any more fails the check.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("file_sizes", "eventlog/trust/verifier.py"): "an auditor gets it alone, as the one file that there is to read",
    ("prints", "eventlog/trust/verifier.py:print"): "alone it is a program",
}


class Source(NamedTuple):
    """One Python file, by its path from the top of the repo."""

    path: str
    text: str
    tree: ast.Module

    @property
    def layer(self) -> str:
        return self.path.split("/")[0]


class Finding(NamedTuple):
    """What is wrong and where; `name` is what an exception is keyed by, beside the path."""

    path: str
    line: int
    name: str
    what: str


Check = Callable[[Source], Iterator[Finding]]


def source(path: str, text: str) -> Source:
    return Source(path, text, ast.parse(text, path))


@functools.cache
def layer_sources() -> tuple[Source, ...]:
    files = [file for layer in LAYERS for file in sorted((ROOT / layer).rglob("*.py"))]
    files.append(ROOT / "ledgerq" / "__init__.py")
    return tuple(source(file.relative_to(ROOT).as_posix(), file.read_text("utf-8")) for file in files)


def refuse(check: Check) -> None:
    """Fail with every finding of `check` that has no exception, and with every exception that has no finding."""
    findings = [finding for file in layer_sources() for finding in check(file)]
    mine = {key for key in EXCEPTIONS if key[0] == check.__name__}
    used = {
        key
        for finding in findings
        for key in ((check.__name__, finding.path), (check.__name__, f"{finding.path}:{finding.name}"))
        if key in mine
    }
    bad = [
        f"{path}:{line}: {what}"
        for path, line, name, what in findings
        if not used & {(check.__name__, path), (check.__name__, f"{path}:{name}")}
    ]
    bad += [f"EXCEPTIONS: nothing needs {key} any more" for key in sorted(mine - used)]
    assert not bad, "\n" + "\n".join(bad)


# Layers


def layers(file: Source) -> Iterator[Finding]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield Finding(file.path, node.lineno, "." * node.level, "relative import; write ledgerq.layer.module")
            continue
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            top, _, rest = module.partition(".")
            if top in LAYERS or top == "tests":
                yield Finding(file.path, node.lineno, module, f"imports {module}; our names begin with ledgerq.")
            elif top == "ledgerq" and not rest:
                yield Finding(file.path, node.lineno, module, "imports the facade; import from the module that has it")
            elif top == "ledgerq" and file.layer in LAYERS and rest.split(".")[0] not in LAYERS[file.layer]:
                yield Finding(file.path, node.lineno, module, f"{file.layer} may not import {module}")


def test_layers() -> None:
    refuse(layers)


# Sizes


def file_sizes(file: Source) -> Iterator[Finding]:
    lines = len(file.text.splitlines())
    if lines > MAX_FILE_LINES:
        yield Finding(file.path, lines, "", f"{lines} lines, more than {MAX_FILE_LINES}; split it by purpose")


def test_file_sizes() -> None:
    refuse(file_sizes)


def test_compiled_sources_are_no_longer_than_others() -> None:
    sizes = {path.name: len(path.read_text("utf-8").splitlines()) for path in (ROOT / "eventlog").rglob("*.[ch]")}
    assert sizes
    assert not [name for name, lines in sizes.items() if lines > MAX_FILE_LINES]


def function_sizes(file: Source) -> Iterator[Finding]:
    for node in ast.walk(file.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                what = f"{node.name} has {lines} lines, more than {MAX_FUNCTION_LINES}"
                yield Finding(file.path, node.lineno, node.name, what)


def test_function_sizes() -> None:
    refuse(function_sizes)


# Docstrings


def module_docstrings(file: Source) -> Iterator[Finding]:
    if file.text.strip() and not ast.get_docstring(file.tree):
        yield Finding(file.path, 1, "", "no module docstring: say where the reader is and what comes next")
    elif not file.text.strip() and not file.path.endswith("/__init__.py"):
        yield Finding(file.path, 1, "", "empty module")


def test_module_docstrings() -> None:
    refuse(module_docstrings)


def exported(tree: ast.Module) -> set[str]:
    """The names in `__all__`, if it is written as a plain list."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names: list[str] = ast.literal_eval(node.value)
            return set(names)
    return set()


def is_repeat(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """An overload, or the setter of a property whose getter has the docstring."""
    names = [ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list]
    return bool({"overload", "setter", "deleter"} & set(names))


def public_docstrings(file: Source) -> Iterator[Finding]:
    def look(body: list[ast.stmt], prefix: str, also: set[str]) -> Iterator[Finding]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") and node.name not in also:
                continue
            repeat = not isinstance(node, ast.ClassDef) and is_repeat(node)
            if not repeat and not ast.get_docstring(node):
                name = prefix + node.name
                yield Finding(file.path, node.lineno, name, f"{name} is public and has no docstring")
            if isinstance(node, ast.ClassDef):
                yield from look(node.body, f"{prefix}{node.name}.", set())

    yield from look(file.tree.body, "", exported(file.tree))


def test_public_docstrings() -> None:
    refuse(public_docstrings)


# What may be used where


def prints(file: Source) -> Iterator[Finding]:
    if file.layer == "tools":
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield Finding(file.path, node.lineno, "print", "print outside tools/; a library logs, or says nothing")


def test_no_print() -> None:
    refuse(prints)


AMBIENT_MODULES = {"random", "secrets", "uuid"}
AMBIENT_NAMES = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "localtime", "gmtime"},
    "os": {"urandom", "getrandom"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
    "ULID": {"from_timestamp", "from_datetime"},  # these fill up from os.urandom
}


def ambient_use(node: ast.AST) -> str:
    """The source text of `node` if it reads the clock or takes from chance, else an empty string."""
    if isinstance(node, ast.Attribute):
        owner = ast.unparse(node.value).split(".")[-1]
        used = owner in AMBIENT_MODULES or node.attr in AMBIENT_NAMES.get(owner, ())
    elif isinstance(node, ast.ImportFrom):
        names = {alias.name for alias in node.names}
        used = node.module in AMBIENT_MODULES or bool(names & AMBIENT_NAMES.get(node.module or "", set()))
    else:
        used = isinstance(node, ast.Call) and ast.unparse(node).split(".")[-1] == "ULID()"
    return ast.unparse(node) if used else ""


def ambient(file: Source) -> Iterator[Finding]:
    if file.path in AMBIENT or file.layer not in {"eventlog", "projections", "worker"}:
        return
    for node in ast.walk(file.tree):
        if isinstance(node, ast.expr | ast.stmt) and (used := ambient_use(node)):
            yield Finding(file.path, node.lineno, used, f"{used}: take a Clock or a source of chance as an argument")


def test_no_ambient_time_or_randomness() -> None:
    refuse(ambient)


TIME_UNITS = {"NS", "US", "MS", "S", "H"}
TIME_WORDS = {
    *("TIMEOUT", "INTERVAL", "DELAY", "LEASE", "WAIT", "TTL", "AGE", "PERIOD", "RETENTION", "BACKOFF", "GRACE"),
    *("DEADLINE", "DURATION", "POLL"),
}
SIZE_WORDS = {"SIZE", "LENGTH", "LIMIT", "CAPACITY", "WINDOW", "PAGE", "CHUNK", "BUFFER", "CACHE"}


def is_number(node: ast.expr | None) -> bool:
    """A number, or a sum of numbers: what a constant in need of a unit looks like."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) and not isinstance(node.value, bool)
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    return isinstance(node, ast.BinOp) and is_number(node.left) and is_number(node.right)


def ends_with_unit(words: list[str]) -> bool:
    """Whether the last word is a unit: of time, of memory, or what is counted, which is a plural (_ROWS, _ATTEMPTS)."""
    return words[-1] in TIME_UNITS | {"KIB", "MIB", "GIB"} or (words[-1].endswith("S") and len(words[-1]) > 1)


def units(file: Source) -> Iterator[Finding]:
    for node in file.tree.body:
        if isinstance(node, ast.Assign) and is_number(node.value):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        elif isinstance(node, ast.AnnAssign) and is_number(node.value) and isinstance(node.target, ast.Name):
            names = [node.target.id]
        else:
            continue
        for name in names:
            words = name.upper().strip("_").split("_")
            if ends_with_unit(words):
                continue
            if set(words) & TIME_WORDS:
                yield Finding(file.path, node.lineno, name, f"{name} is a time without its unit (_MS, _S, ...)")
            elif set(words) & SIZE_WORDS:
                yield Finding(file.path, node.lineno, name, f"{name} is a size without its unit (_BYTES, _ROWS, ...)")


def test_constants_carry_their_unit() -> None:
    refuse(units)


PRIVATE_BINDING = ("eventlog/slate/fast_binding.py", "eventlog/slate/native_binding.py")


def private_binding(file: Source) -> Iterator[Finding]:
    if file.path in PRIVATE_BINDING:
        return
    for number, line in enumerate(file.text.splitlines(), 1):
        if "_uniffi" in line:
            what = f"private parts of the binding belong in {' and '.join(PRIVATE_BINDING)}"
            yield Finding(file.path, number, "_uniffi", what)


def test_only_the_faster_lanes_know_the_bindings_private_parts() -> None:
    refuse(private_binding)


# What lies where


def pyproject() -> dict[str, dict[str, object]]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_packages_are_found_through_one_link() -> None:
    setuptools = pyproject()["tool"]["setuptools"]
    assert isinstance(setuptools, dict)
    assert setuptools["package-dir"] == {"": ".ci/src"}, "pyproject.toml:1: packages are found below .ci/src"
    assert setuptools["packages"] == {"find": {"where": [".ci/src"], "namespaces": False}}
    found = ROOT / ".ci" / "src"
    names = [entry.name for entry in found.iterdir() if entry.suffix != ".egg-info"]
    assert names == ["ledgerq"], ".ci/src:1: only the link ledgerq lives here"
    link = (found / "ledgerq").readlink()
    assert link == Path("../../ledgerq"), ".ci/src/ledgerq:1: should be a link to ../../ledgerq"
    folders = {file.parent.relative_to(ROOT).as_posix() for layer in LAYERS for file in (ROOT / layer).rglob("*.py")}
    missing = [
        f"{folder}/__init__.py:1: missing, so that the folder is no package and in no wheel"
        for folder in sorted(folders | {"ledgerq"})
        if not (ROOT / folder / "__init__.py").is_file()
    ]
    assert not missing, "\n" + "\n".join(missing)


def test_no_two_files_of_one_name_in_a_layer() -> None:
    """So that a name identifies a file; and no layer has a file beside a folder of its name."""
    bad = []
    for layer in LAYERS:
        names: dict[str, str] = {}
        for file in sorted((ROOT / layer).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            if file.name not in {"__init__.py", "__main__.py"} and names.setdefault(file.name, path) != path:
                bad.append(f"{path}:1: has the name of {names[file.name]}")
            if file.with_suffix("").is_dir():
                bad.append(f"{path}:1: stands beside a folder of its name")
    assert not bad, "\n" + "\n".join(bad)


def test_top_level_holds_only_what_belongs_there() -> None:
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text("utf-8").split()]
    found = {entry.name for entry in ROOT.iterdir()}
    strays = sorted(
        name for name in found - TOP_LEVEL if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)
    )
    assert not strays, "\n".join(f"{name}:1: does not belong at the top of the repo" for name in strays)
    absent = sorted(TOP_LEVEL - found - {".git"})
    assert not absent, "\n".join(f"{name}:1: missing" for name in absent)


def test_facade_folder_holds_links_to_the_layers() -> None:
    bad = [
        f"ledgerq/{layer}:1: should be a symbolic link to ../{layer}"
        for layer in LAYERS
        if not (ROOT / "ledgerq" / layer).is_symlink() or (ROOT / "ledgerq" / layer).readlink() != Path("..") / layer
    ]
    modules = {"events.py", "sync.py", "testing.py", "pytest_plugin.py"}
    allowed = {*LAYERS, *modules, "__init__.py", "py.typed", "__pycache__"}
    bad += [
        f"ledgerq/{entry.name}:1: only links, __init__.py, py.typed and {modules} live here"
        for entry in (ROOT / "ledgerq").iterdir()
        if entry.name not in allowed
    ]
    assert (ROOT / "ledgerq" / "py.typed").is_file(), "ledgerq/py.typed:1: missing"
    assert not bad, "\n" + "\n".join(bad)


MACHINE_PATH = re.compile(r"/(work|tmp|root)/|/home/\w")


def written_files() -> Iterator[Path]:
    """Every file that people wrote, outside tests."""
    for name in sorted(TOP_LEVEL - {".git", "tests"}):
        top = ROOT / name
        yield from [top] if top.is_file() else top.rglob("*")


def test_no_machine_paths() -> None:
    bad = []
    for file in written_files():
        if not file.is_file() or file.is_symlink() or "__pycache__" in file.parts or file.suffix in (".png", ".so"):
            continue
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            if found := MACHINE_PATH.search(line):
                bad.append(f"{file.relative_to(ROOT).as_posix()}:{number}: speaks of {found.group()}")
    assert not bad, "\n" + "\n".join(bad)


def test_changelog_has_this_version() -> None:
    version = pyproject()["project"]["version"]
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    assert any(line.startswith(f"## [{version}]") for line in lines), f"CHANGELOG.md:1: no heading for {version}"


# The checks can fail


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (layers, "eventlog/x.py", "from ledgerq.worker.queue import Queue"),
        (layers, "projections/x.py", "import ledgerq.tools.cli.app"),
        (layers, "worker/x.py", "def f():\n    from ledgerq.tools import demo"),
        (layers, "tools/x.py", "from ledgerq import Queue"),
        (layers, "tools/x.py", "import ledgerq"),
        (layers, "tools/x.py", "from worker.queue import Queue"),
        (layers, "worker/x.py", "from tests.helpers import store"),
        (layers, "worker/x.py", "from . import queue"),
        (layers, "ledgerq/__init__.py", "from .worker import queue"),
        (file_sizes, "worker/x.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (function_sizes, "worker/x.py", "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
        (module_docstrings, "worker/x.py", "x = 1"),
        (module_docstrings, "worker/x.py", ""),
        (public_docstrings, "worker/x.py", "def f(): ..."),
        (public_docstrings, "worker/x.py", "__all__ = ['_f']\ndef _f(): ..."),
        (public_docstrings, "worker/x.py", "class C:\n    '''Doc.'''\n    async def f(self): ..."),
        (prints, "worker/x.py", "print(1)"),
        (ambient, "worker/x.py", "import time\nnow = time.time()"),
        (ambient, "worker/x.py", "from time import monotonic"),
        (ambient, "projections/x.py", "import datetime\nnow = datetime.datetime.now()"),
        (ambient, "eventlog/x.py", "import random\nx = random.random()"),
        (ambient, "eventlog/x.py", "from random import Random"),
        (ambient, "eventlog/x.py", "import os\nx = os.urandom(16)"),
        (ambient, "worker/x.py", "from ulid import ULID\nx = ULID()"),
        (units, "worker/x.py", "_POLL_INTERVAL = 5"),
        (units, "worker/x.py", "PAGE_SIZE: Final = 4 * 1024"),
        (private_binding, "eventlog/slate/slate_store.py", "from slatedb import _uniffi"),
    ],
)
def test_the_checks_can_fail(check: Check, path: str, text: str) -> None:
    assert list(check(source(path, text))), f"{check.__name__} lets this pass:\n{text}"


@pytest.mark.parametrize(
    ("check", "path", "text"),
    [
        (layers, "tools/x.py", "import ledgerq.worker.queue\nfrom ledgerq.eventlog.store import Store"),
        (layers, "ledgerq/__init__.py", "from ledgerq.worker.queue import Queue"),
        (public_docstrings, "worker/x.py", "class _C:\n    def f(self): ...\ndef _g(): ..."),
        (prints, "tools/x.py", "print(1)"),
        (ambient, "eventlog/clock.py", "import time\nnow = time.time()"),
        (ambient, "tools/x.py", "import time\nnow = time.time()"),
        (ambient, "worker/x.py", "now = clock.now_ms()\nx = ULID.from_bytes(b)\nfrom datetime import datetime"),
        (units, "worker/x.py", "LEASE_MS = 30_000\nMAX_ATTEMPTS = 3\nPAGE_ROWS = 1000\nCACHE_MIB = 32\nSTATE = 'page'"),
    ],
)
def test_the_checks_can_pass(check: Check, path: str, text: str) -> None:
    assert not list(check(source(path, text)))


# What is built once runs on each later CPython and must on an earlier one, too: see eventlog/slate/_rows.h.
_ONLY_WHERE_IT_WAS_BUILT = re.compile(r'Py_RETURN_\w+;|"[^"\n]*#[^"\n]*"')


def test_compiled_parts_hold_nothing_that_only_works_on_the_version_they_were_built_with() -> None:
    sources = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.[ch]")]
    assert len(sources) >= 4
    for path in sources:
        text = "\n".join(line for line in path.read_text("utf-8").splitlines() if not line.startswith("#include"))
        assert not _ONLY_WHERE_IT_WAS_BUILT.findall(text), path
    for wrong in ("    Py_RETURN_NONE;", 'PyArg_ParseTuple(arguments, "Ky#LK:flush", &db)'):
        assert _ONLY_WHERE_IT_WAS_BUILT.findall(wrong)
