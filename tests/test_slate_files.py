"""Damage to SlateDB's own files, of which it would wait for ever or say nothing that helps: named before it opens."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from slatedb.uniffi import Error, InternalError

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import Fenced, LogPoisoned
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate_errors import translate
from ledgerq.eventlog.slate_files import check_files
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.queue import Queue
from tests.ledger_checks import check_ledger

LIMIT_S = 5.0


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sorted files of different length, and a log file that is in neither."""
    place = tmp_path_factory.mktemp("files")

    async def make() -> None:
        for size in (10, 2000):
            async with Queue.open((place / "made").as_uri(), clock=ManualClock()) as queue:
                await queue.enqueue_many("q", [bytes(size)] * 20)
        async with Queue.open((place / "made").as_uri(), clock=ManualClock()):
            shutil.copytree(place / "made", place / "store")

    asyncio.run(make())
    return place / "store"


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def sorted_files(folder: Path) -> list[Path]:
    """Smallest first."""
    return sorted((folder / "compacted").iterdir(), key=lambda path: path.stat().st_size)


def newest(folder: Path, kind: str) -> Path:
    """The file with the highest number."""
    return max((folder / kind).iterdir())


def cut(file: Path) -> Path:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def zeros(file: Path) -> Path:
    file.write_bytes(bytes(file.stat().st_size))
    return file


def exchange(folder: Path) -> Path:
    small, large = sorted_files(folder)[:2]
    small_bytes, large_bytes = small.read_bytes(), large.read_bytes()
    small.write_bytes(large_bytes)
    large.write_bytes(small_bytes)
    return large


async def refused(folder: Path, name: str, *, reading: bool = True) -> str:
    """Both ways of opening name the file at once; gives what is said."""
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(LogPoisoned, match=name) as caught:
            await Queue.open(folder.as_uri(), clock=ManualClock())
        if reading:
            with pytest.raises(LogPoisoned, match=name):
                await open_reader(folder.as_uri(), pinned=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def opens(folder: Path) -> None:
    """It is whole."""
    async with Queue.open(folder.as_uri(), clock=ManualClock()) as queue:
        assert (await queue.stats("q")).pending == 40
        await check_ledger(queue.log.store)


HARMS: list[Callable[[Path], Path]] = [
    lambda folder: cut(sorted_files(folder)[1]),
    lambda folder: zeros(sorted_files(folder)[0]),
    exchange,
    lambda folder: cut(newest(folder, "wal")),
    lambda folder: zeros(newest(folder, "wal")),
    lambda folder: cut(newest(folder, "manifest")),
]


@pytest.mark.parametrize("harm", HARMS)
async def test_a_damaged_file_is_named_at_once(folder: Path, harm: Callable[[Path], Path]) -> None:
    await refused(folder, harm(folder).name)


async def test_without_damage_everything_is_there(folder: Path) -> None:
    assert len(sorted_files(folder)) == 2
    await opens(folder)


async def test_a_damaged_manifest_may_be_moved_away(folder: Path) -> None:
    said = await refused(folder, zeros(newest(folder, "manifest")).name)
    assert "move it away" in said
    assert "open it again" in said
    newest(folder, "manifest").unlink()
    with pytest.raises(Fenced):
        await Queue.open(folder.as_uri(), clock=ManualClock())
    await opens(folder)


@pytest.mark.parametrize("kind", ["manifest", "compactions"])
async def test_a_newest_file_that_is_missing_is_not_waited_for(folder: Path, kind: str) -> None:
    number = int(newest(folder, kind).stem)
    (folder / "gc").mkdir(exist_ok=True)
    (folder / "gc" / f"{kind}.boundary").write_text(str(number - 1))
    await opens(Path(shutil.copytree(folder, folder.parent / "copy")))
    newest(folder, kind).unlink()
    await refused(folder, f"gc/{kind}.boundary", reading=kind == "manifest")


@pytest.mark.parametrize("content", [b"", b"\0\0", b"-3", b"9" * 30])
async def test_a_boundary_that_cant_be_read_is_named_and_may_be_removed(folder: Path, content: bytes) -> None:
    boundary = folder / "gc" / "manifest.boundary"
    boundary.parent.mkdir(exist_ok=True)
    boundary.write_bytes(content)
    assert "remove it" in await refused(folder, "gc/manifest.boundary")
    boundary.unlink()
    await opens(folder)


async def test_damaged_compactions_are_named_and_may_be_removed(folder: Path) -> None:
    said = await refused(folder, zeros(newest(folder, "compactions")).name, reading=False)
    reader = await open_reader(folder.as_uri(), pinned=True)
    await check_ledger(reader)
    await reader.close()
    assert "remove the folder compactions/" in said
    shutil.rmtree(folder / "compactions")
    await opens(folder)


async def test_what_slatedb_panics_of_is_one_line_at_the_command_line(folder: Path) -> None:
    manifest = newest(folder, "manifest")
    content = manifest.read_bytes()
    for at in reversed(range(len(content))):
        # The end holds what SlateDB reads without checking it first.
        manifest.write_bytes(content[:at] + bytes((content[at] ^ 0xFF,)) + content[at + 1 :])
        try:
            await check_files(parse_location(str(folder)), writing=True)
        except LogPoisoned as error:
            if isinstance(error.__cause__, InternalError):
                break
    else:
        pytest.fail("SlateDB panics of nothing any more")
    for command in (["audit"], ["rebuild-projections", "--take-over", "--actor", "ann"], ["stats"]):
        argv = [sys.executable, "-m", "ledgerq.tools.cli", command[0], str(folder), *command[1:]]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.count("\n") == 1, done.stderr
        assert manifest.name in done.stderr


def test_compactions_that_dont_go_with_the_manifest_are_damage_and_no_wrong_argument() -> None:
    error = translate(Error.Invalid(message="Invalid error: invalid compaction"), "file:///store")
    assert type(error) is LogPoisoned
    assert "compactions/" in str(error)
