"""Damage to SlateDB's own files, at which it would wait for ever or fail unclearly: named before it opens."""

import asyncio
import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from slatedb.uniffi import Error, InternalError

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import LogPoisoned
from ledgerq.eventlog.events import FilesSetAside
from ledgerq.eventlog.files import file_checks
from ledgerq.eventlog.files.file_checks import check_files
from ledgerq.eventlog.files.garbage import admin_of
from ledgerq.eventlog.files.garbage import sorted_files as sorted_files_of
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.recovery.set_aside import read_set_aside
from ledgerq.eventlog.slate.error_mapping import translate
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.queue import Queue
from tests.support.ledger_checks import check_ledger
from tests.tiers import sampled

LIMIT_S = 60.0


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


async def refused(folder: Path, name: str, *, writing: bool = False) -> str:
    """Opening it for reading, or also for writing, names the file at once; gives the message."""
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(LogPoisoned, match=name) as caught:
            await open_reader(folder.as_uri(), pinned=True)
        if writing:
            with pytest.raises(LogPoisoned, match=name):
                await Queue.open(folder.as_uri(), clock=ManualClock())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_of(folder: Path) -> set[str]:
    """The names of all files of the store."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


async def opens(folder: Path) -> None:
    """It is whole."""
    async with Queue.open(folder.as_uri(), clock=ManualClock()) as queue:
        assert (await queue.stats("q")).pending == 40
        await check_ledger(queue.log.store)


def collect(folder: Path) -> None:
    """Remove what the newest manifest replaced, as garbage collection does after a while."""
    for kind in ("manifest", "compactions"):
        for file in sorted((folder / kind).iterdir())[:-1]:
            file.unlink()
    for file in sorted((folder / "wal").iterdir())[:-2]:
        file.unlink()


HARMS: list[Callable[[Path], Path]] = [
    lambda folder: cut(sorted_files(folder)[1]),
    lambda folder: zeros(sorted_files(folder)[0]),
    exchange,
    lambda folder: cut(newest(folder, "manifest")),
]


@pytest.mark.parametrize("harm", sampled(HARMS, quick=2))
async def test_a_damaged_file_is_named_at_once_and_set_aside_where_nothing_needs_it(
    folder: Path, harm: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    harmed = harm(folder)
    manifest = newest(folder, "manifest")
    await refused(folder, harmed.name)
    await opens(folder)
    (moved,) = read_set_aside(folder)
    assert f"manifest/{manifest.name}" in moved.files
    assert (folder / moved.folder / "manifest" / manifest.name).is_file()
    assert [record.levelname for record in caplog.records if record.ledgerq_event == "set_aside"] == ["WARNING"]  # type: ignore[attr-defined]


def hole(file: Path) -> Path:
    """Some of its data never reached the disk, but its end did."""
    data = file.read_bytes()
    file.write_bytes(data[:100] + bytes(200) + data[300:])
    return file


async def test_a_sorted_file_with_a_hole_is_set_aside_with_the_manifest_that_names_it(folder: Path) -> None:
    (folder / "synced").unlink()
    harmed = hole(sorted_files(folder)[1])
    await opens(folder)
    assert harmed.name in "".join(read_set_aside(folder)[0].files.values())


async def test_no_more_is_read_to_see_what_damage_costs_than_to_find_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = parse_location(folder.as_uri())
    manifest = await admin_of(location).read_manifest(None)
    assert manifest is not None
    names = sorted(sorted_files_of(manifest))
    read: list[bytes] = []

    def damaged_ranges(data: bytes) -> list[tuple[int, int]]:
        read.append(data)
        return []

    monkeypatch.setattr(file_checks, "damaged_ranges", damaged_ranges)
    for trusted, limit_bytes, count in ((names[:-1], 2**30, 1), ([], 2**30, len(names)), ([], 1, 1)):
        monkeypatch.setattr(file_checks, "_MAX_CHECKED_BYTES", limit_bytes)
        read.clear()
        assert file_checks._costs_payloads_only(folder, manifest, frozenset(trusted))
        assert len(read) == count
    assert len(names) > 1


async def test_files_that_are_known_to_be_on_the_disk_are_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "synced").unlink()
    await opens(folder)
    read: list[bytes] = []

    def read_sst(data: bytes, _: object) -> tuple[()]:
        read.append(data)
        return ()

    monkeypatch.setattr(file_checks, "read_sst", read_sst)
    await opens(folder)
    assert read == []


@pytest.mark.parametrize("harm", [hole, cut, zeros])
async def test_a_log_file_that_nobody_was_promised_is_set_aside(folder: Path, harm: Callable[[Path], Path]) -> None:
    last = newest(folder, "wal")
    beyond = last.with_name(f"{int(last.stem) + 1:020d}.sst")
    large = max((folder / "wal").iterdir(), key=lambda path: path.stat().st_size)
    shutil.copy(large, beyond)
    harm(beyond)
    await opens(folder)
    assert f"wal/{beyond.name}" in read_set_aside(folder)[0].files


@pytest.mark.parametrize("harm", sampled(HARMS))
async def test_a_damaged_file_that_is_needed_is_named_at_once(folder: Path, harm: Callable[[Path], Path]) -> None:
    collect(folder)
    await opens(Path(shutil.copytree(folder, folder.parent / "copy")))
    before = files_of(folder)
    await refused(folder, harm(folder).name, writing=True)
    assert files_of(folder) == before


@pytest.mark.parametrize("harm", [cut, zeros])
async def test_a_log_file_that_is_needed_is_named_at_once(folder: Path, harm: Callable[[Path], Path]) -> None:
    await refused(folder, harm(newest(folder, "wal")).name, writing=True)


async def test_lists_of_compactions_of_a_store_that_was_never_made_fence_nobody(folder: Path) -> None:
    for name in ("manifest", "wal", "compacted", "gc"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "anchor").unlink()
    (folder / "synced").unlink(missing_ok=True)
    lists = files_of(folder) & {f"compactions/{path.name}" for path in (folder / "compactions").iterdir()}
    async with Queue.open(folder.as_uri(), clock=ManualClock()) as queue:
        await queue.enqueue("q", b"new")
    assert lists
    assert read_set_aside(folder)[0].files.keys() == lists


async def test_without_damage_everything_is_there(folder: Path) -> None:
    assert len(sorted_files(folder)) == 2
    await opens(folder)
    assert read_set_aside(folder) == []


async def test_what_was_set_aside_is_in_the_log_once(folder: Path) -> None:
    zeros(newest(folder, "manifest"))
    await opens(folder)
    await opens(folder)
    (moved,) = read_set_aside(folder)
    async with Queue.open(folder.as_uri(), clock=ManualClock()) as queue:
        events = [record.event async for record in queue.log.read()]
        told = [event for event in events if isinstance(event, FilesSetAside)]
        assert told == [FilesSetAside(moved.folder, len(moved.files), tuple(moved.files))]
        await check_ledger(queue.log.store)
    assert moved.is_recorded


async def test_lists_of_a_compactor_whose_manifest_is_lost_are_set_aside(folder: Path) -> None:
    admin = admin_of(parse_location(str(folder)))
    last = await admin.read_manifest(None)
    assert last is not None
    for file in sorted((folder / "manifest").iterdir()):
        manifest = await admin.read_manifest(int(file.stem))
        if manifest is not None and manifest.compactor_epoch == last.compactor_epoch:
            file.unlink()
    newest_list = newest(folder, "compactions")
    await opens(folder)
    assert f"compactions/{newest_list.name}" in read_set_aside(folder)[0].files


async def test_nothing_is_set_aside_where_a_writer_may_be_alive(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros(newest(folder, "manifest"))
    before = files_of(folder)

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(LogPoisoned, match=newest(folder, "manifest").name):
        await Queue.open(folder.as_uri(), clock=ManualClock())
    assert {name for name in files_of(folder) if not name.startswith("writer")} == {
        name for name in before if not name.startswith("writer")
    }


async def test_a_manifest_is_set_aside_before_several_that_can_be_read(folder: Path) -> None:
    numbers = sorted((folder / "manifest").iterdir())
    for file in numbers[-3:]:
        file.write_bytes(b"")
    await opens(folder)
    assert set(read_set_aside(folder)[0].files) >= {f"manifest/{file.name}" for file in numbers[-3:]}


@pytest.mark.parametrize("kind", ["manifest", "compactions"])
async def test_a_newest_file_that_is_missing_is_not_waited_for(folder: Path, kind: str) -> None:
    number = int(newest(folder, kind).stem)
    (folder / "gc").mkdir(exist_ok=True)
    (folder / "gc" / f"{kind}.boundary").write_text(str(number - 1))
    await opens(Path(shutil.copytree(folder, folder.parent / "copy")))
    newest(folder, kind).unlink()
    if kind == "manifest":
        await refused(folder, f"gc/{kind}.boundary")
    await opens(folder)
    assert f"gc/{kind}.boundary" in read_set_aside(folder)[0].files


@pytest.mark.parametrize("content", sampled([b"", b"\0\0", b"-3", b"9" * 30]))
async def test_a_boundary_that_cant_be_read_is_named_and_set_aside(folder: Path, content: bytes) -> None:
    boundary = folder / "gc" / "manifest.boundary"
    boundary.parent.mkdir(exist_ok=True)
    boundary.write_bytes(content)
    assert "remove it" in await refused(folder, "gc/manifest.boundary")
    await opens(folder)
    assert "gc/manifest.boundary" in read_set_aside(folder)[0].files


@pytest.mark.parametrize("harm", [cut, zeros])
async def test_damaged_compactions_are_set_aside(folder: Path, harm: Callable[[Path], Path]) -> None:
    harmed = harm(newest(folder, "compactions"))
    reader = await open_reader(folder.as_uri(), pinned=True)
    await check_ledger(reader)
    await reader.close()
    await opens(folder)
    assert f"compactions/{harmed.name}" in read_set_aside(folder)[0].files


def lead(manifest: Path) -> Path:
    """Put into it a sequence number that no row ever had, as one flipped bit can."""
    version, one, count = b"\x01", (1).to_bytes(4, "little"), (1).to_bytes(4, "big")
    before, found, after = manifest.read_bytes().partition(version + one + count)
    assert found
    assert len(after) > 8
    manifest.write_bytes(before + found + bytes((after[0] ^ 0x40,)) + after[1:])
    return manifest


async def test_a_manifest_whose_sequence_numbers_lead_is_set_aside_or_refused(folder: Path) -> None:
    """SlateDB would open it, and end at its first sorted file."""
    collected = Path(shutil.copytree(folder, folder.parent / "collected"))
    collect(collected)
    lead(newest(collected, "manifest"))
    with pytest.raises(LogPoisoned, match="holds sequence number 46116860184"):
        await Queue.open(collected.as_uri(), clock=ManualClock())
    harmed = lead(newest(folder, "manifest"))
    await opens(folder)
    assert "altered" in read_set_aside(folder)[0].files[f"manifest/{harmed.name}"]


@pytest.mark.proof
async def test_what_slatedb_panics_of_is_one_line_at_the_command_line(folder: Path) -> None:
    collect(folder)
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
