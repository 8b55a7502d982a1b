"""Each kind of install answers `import ledgerq`, and mypy --strict finds its types there.

An installed sdist is an installed wheel, too: that is what pip makes of it.
"""

import subprocess
import sys
import sysconfig
import venv
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from ledgerq.eventlog.slate.native_binding import is_built

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """\
from ledgerq import Claim, Queue, events


async def first_attempt(queue: Queue) -> int:
    claims = await queue.claim("mail")
    reveal_type(claims)
    job = await queue.get(claims[0].job_id)
    return job.attempt


def enqueued(event: events.JobEvent) -> bool:
    return isinstance(event, events.Enqueued)


def typo(claim: Claim) -> None:
    print(claim.attemps)
"""
IMPORTS = """\
import importlib.util, ledgerq, ledgerq.tools.cli.app, ledgerq.worker.queue
assert ledgerq.Queue is ledgerq.worker.queue.Queue
bare = [name for name in ("eventlog", "projections", "worker", "tools", "tests") if importlib.util.find_spec(name)]
print(ledgerq.__file__, *bare)
"""
LANE = "from ledgerq.eventlog.slate.lanes import best_lane; print(type(best_lane()).__name__)"
JOB = """\
import asyncio
from ledgerq import Queue

async def main():
    async with Queue.open("store") as queue:
        await queue.enqueue("mail", b"x")
    async with Queue.open("store") as queue:
        [claim] = await queue.claim("mail")
        await queue.ack(claim)
        print((await queue.stats("mail")).done)

asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the sources, without what was built of them."""
    skip = ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", "__pycache__", "*.so")
    return Path(copytree(ROOT, tmp_path / "source", symlinks=True, ignore=skip))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The Python of an empty environment."""
    place = tmp_path / "venv"
    venv.create(place, with_pip=False, symlinks=True)
    [site_packages] = place.glob("lib/python*/site-packages")
    # What ledgerq needs is there, by one line that doesn't follow the .pth file of the ledgerq installed beside it.
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "bin" / "python"


def install(python: Path, *what: str | Path, cwd: Path) -> None:
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *offline, *what, cwd=cwd)


@pytest.mark.proof
@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed: it comes with the dev extra")
@pytest.mark.parametrize("kind", ["editable", "sdist"])
def test_import_and_types_are_found(kind: str, source: Path, python: Path, tmp_path: Path) -> None:
    what: list[str | Path] = ["--editable", source]
    if kind == "sdist":
        build = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
        run(python, "-c", build, cwd=source)
        what = list(tmp_path.glob("*.tar.gz"))
    install(python, *what, cwd=tmp_path)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    [site_packages] = (tmp_path / "venv").glob("lib/python*/site-packages")
    home = source / ".ci" / "src" if kind == "editable" else site_packages
    assert run(python, "-c", IMPORTS, cwd=elsewhere).split() == [str(home / "ledgerq" / "__init__.py")]

    assert run(python, "-c", LANE, cwd=elsewhere).strip() == ("NativeLane" if is_built() else "FastLane")

    (elsewhere / "program.py").write_text(PROGRAM)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    done = subprocess.run(mypy, cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False)
    lines = [line.split(": ", 1)[-1] for line in done.stdout.splitlines()]
    assert lines == [
        'note: Revealed type is "list[ledgerq.worker.claims.Claim]"',
        'error: "Claim" has no attribute "attemps"; maybe "attempt"?  [attr-defined]',
        "Found 1 error in 1 file (checked 1 source file)",
    ], done.stdout + done.stderr


@pytest.mark.proof
@pytest.mark.parametrize("kind", ["editable", "folder"])
def test_an_install_without_a_compiler_works(
    kind: str, source: Path, python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "false")
    install(python, *(["--editable"] if kind == "editable" else []), source, cwd=tmp_path)
    assert not list(source.rglob("*.so"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert run(python, "-c", LANE, cwd=elsewhere).strip() == "FastLane"
    assert run(python, "-c", JOB, cwd=elsewhere).strip() == "1"
