"""Objects in the place of a store's files that are none: refused by name before it is waited for or read.

Each of these made commands wait for ever, or ended the process for want of memory.
"""

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.files.odd_files import find_odd_files, new_file, open_in_place, read_small
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.recorded_audit import RecordedAudit, read_recorded_audit, write_recorded_audit
from ledgerq.eventlog.slate.preflight import check_writable
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, make_ledger

TERABYTE = 1 << 40
NOTE = RecordedAudit(1, 2, 0, True, False)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every kind of file that SlateDB makes."""
    folder = tmp_path_factory.mktemp("odd") / "store"
    asyncio.run(make_ledger(folder))
    (folder / "gc").mkdir(exist_ok=True)
    (folder / "gc" / "manifest.boundary").write_text("0")
    return folder


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be harmed."""
    return Path(shutil.copytree(pristine, tmp_path / "store"))


def newest(folder: Path, kind: str) -> Path:
    return max((folder / kind).iterdir())


FILES: dict[str, Callable[[Path], Path]] = {
    "manifest": lambda folder: newest(folder, "manifest"),
    "wal": lambda folder: newest(folder, "wal"),
    "compacted": lambda folder: newest(folder, "compacted"),
    "compactions": lambda folder: newest(folder, "compactions"),
    "boundary": lambda folder: folder / "gc" / "manifest.boundary",
    "anchor": lambda folder: folder / "anchor",
    "synced": lambda folder: folder / "synced",
}


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a pipe (FIFO), not a regular file"


def bound_socket(path: Path) -> str:
    # The path of a socket has a hundred bytes at most.
    here = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)
    return "is a socket, not a regular file"


def folder(path: Path) -> str:
    path.mkdir()
    return "is a folder"


def endless(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "is a symbolic link to a file that is a device, not a regular file"


def link_to_pipe(path: Path) -> str:
    os.mkfifo(path.parent.parent / "pipe")
    path.symlink_to(path.parent.parent / "pipe")
    return "is a symbolic link to a file that is a pipe"


def nowhere(path: Path) -> str:
    path.symlink_to("nothing")
    return "is a symbolic link that leads nowhere"


def sparse(path: Path) -> str:
    path.touch()
    os.truncate(path, TERABYTE)
    return f"has {TERABYTE} bytes, and at most"


ODD = [pipe, bound_socket, folder, endless, link_to_pipe, nowhere]
READ_WHOLE = ("manifest", "compactions", "boundary", "anchor", "synced")
CASES = [(make, kind) for make in ODD for kind in FILES] + [(sparse, kind) for kind in READ_WHOLE]


@pytest.mark.parametrize(("make", "kind"), CASES)
async def test_it_is_refused_for_reading_and_for_writing_by_name_and_with_what_to_do(
    store: Path, make: Callable[[Path], str], kind: str
) -> None:
    file = FILES[kind](store)
    file.unlink()
    what = make(file)
    if (make, kind) == (folder, "anchor"):
        what = "it is a folder; remove it"  # that is told apart without a look at its type
    name = str(file.relative_to(store))
    for opening in (Queue.open(str(store), clock=ManualClock()), open_reader(str(store), pinned=True)):
        with pytest.raises(StoreUnavailable) as caught:
            await opening
        assert name in str(caught.value)
        assert what in str(caught.value)
        assert "; " in str(caught.value)
        is_saved = f"save what is there with: rebuild-projections {store} --into NEW --salvage" in str(caught.value)
        assert is_saved == (kind in ("manifest", "wal", "compacted"))
    assert {path.name for path in store.iterdir()} <= {
        *("manifest", "wal", "compacted", "compactions", "gc", "anchor"),
        *("synced", "writer", "writer.opening", "pipe"),
    }


@pytest.mark.parametrize("kind", FILES)
def test_commands_refuse_a_pipe_in_one_line(
    store: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = FILES[kind](store)
    file.unlink()
    os.mkfifo(file)
    name = str(file.relative_to(store))
    cli = Cli(capsys, monkeypatch)
    for words in (
        ["audit", store],
        ["stats", store],
        ["enqueue", store, "q", "x", "--take-over"],
        ["rebuild-projections", store, "--into", store.parent / "new"],
    ):
        message = cli.fails(3, *words)
        assert f"{name} is a pipe (FIFO), not a regular file; " in message
    ran = cli("doctor", store)
    assert (ran.code, name in ran.out, "pipe" in ran.out) == (1, True, True)


async def test_links_to_regular_files_are_read_but_the_anchor_is_not_written_through_one(store: Path) -> None:
    elsewhere = store.parent / "elsewhere"
    shutil.copytree(store, elsewhere)
    for kind in ("manifest", "wal", "compacted", "compactions", "boundary", "anchor"):
        file = FILES[kind](store)
        file.unlink()
        file.symlink_to(FILES[kind](elsewhere))
    before = (elsewhere / "anchor").read_bytes()
    assert list(find_odd_files(store, writing=False)) == []
    reader = await open_reader(str(store), pinned=True)
    assert await reader.read_anchor() is not None
    await reader.close()
    with pytest.raises(StoreUnavailable, match="anchor is a symbolic link, and nothing is written through one; put"):
        await Queue.open(str(store), clock=ManualClock())
    shutil.copy(elsewhere / "anchor", store.parent / "own")
    (store.parent / "own").replace(store / "anchor")
    async with Queue.open(str(store)) as queue:
        await queue.enqueue("mail", b"one more")
    assert (elsewhere / "anchor").read_bytes() == before


def test_folders_and_files_of_other_names_do_no_harm_but_pipes_do(store: Path) -> None:
    (store / "wal" / "lost+found").mkdir()
    (store / "wal" / "00000000000000000009.sst#1").write_text("left by a writer that was killed")
    (store / "pipe").symlink_to("/dev/zero")
    assert list(find_odd_files(store, writing=True)) == []
    os.mkfifo(store / "compacted" / "pipe")
    (found,) = find_odd_files(store, writing=True)
    assert found.name == "compacted/pipe"


@pytest.mark.proof
def test_ten_thousand_log_files_are_not_looked_at_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wal").mkdir()
    for number in range(10_000):
        (tmp_path / "wal" / f"{number:020d}.sst").touch()
    looks = 0
    real = os.scandir

    class Counting:
        """An entry of a listing that counts how often the file itself is asked."""

        def __init__(self, entry: "os.DirEntry[str]") -> None:
            self._entry = entry
            self.name, self.path = entry.name, entry.path

        def is_file(self, *, follow_symlinks: bool) -> bool:
            return self._entry.is_file(follow_symlinks=follow_symlinks)

        def __getattr__(self, name: str) -> object:
            nonlocal looks
            looks += 1
            return getattr(self._entry, name)

    class Listing:
        def __init__(self, path: Path) -> None:
            self._entries = real(path)

        def __enter__(self) -> "Listing":
            return self

        def __iter__(self) -> Iterator[Counting]:
            return map(Counting, self._entries)

        def __exit__(self, *_: object) -> None:
            self._entries.close()

    monkeypatch.setattr(os, "scandir", Listing)
    assert list(find_odd_files(tmp_path, writing=True)) == []
    assert looks == 0


# What is written here itself


def test_the_anchor_is_never_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "anchor").symlink_to(target)
    with pytest.raises(OSError, match="symbolic link"):
        FileAnchor(tmp_path, fsync=False).write(Anchor(0, 1, bytes(32), 1, 1))
    assert target.read_text() == "precious"
    with pytest.raises(OSError, match="symbolic link"):
        open_in_place(tmp_path / "anchor", 100)


@pytest.mark.parametrize("make", [pipe, bound_socket, endless])
def test_what_is_no_file_is_neither_read_nor_written(tmp_path: Path, make: Callable[[Path], str]) -> None:
    make(tmp_path / "anchor")
    anchor = FileAnchor(tmp_path, fsync=False)
    with pytest.raises(OSError, match=r"pipe|device|No such device"):
        anchor.read()
    with pytest.raises(OSError, match=r"pipe|device|socket|No such"):
        anchor.write(Anchor(0, 1, bytes(32), 1, 1))
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none", 10)


def test_a_small_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(10))
    assert read_small(tmp_path / "file", 10) == bytes(10)
    with pytest.raises(OSError, match="has 10 bytes, and at most 9 can be right"):
        read_small(tmp_path / "file", 9)
    with pytest.raises(OSError, match=r"at most 100 can be right|grew beyond 100 bytes"):
        read_small(Path("/proc/self/maps"), 100)


async def test_the_preflight_writes_no_name_that_can_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    place = tmp_path / "store"
    place.mkdir()
    for name in (f"preflight.{os.getpid()}", "preflight"):
        (place / name).symlink_to(target)
    before = sorted(place.iterdir())
    await check_writable(parse_location(str(place)), create=True)
    assert target.read_text() == "precious"
    assert sorted(place.iterdir()) == before

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(StoreUnavailable, match="the disk is full"):
        await check_writable(parse_location(str(place)), create=True)
    assert sorted(place.iterdir()) == before


def test_a_new_file_is_its_owners_alone_and_gone_afterwards(tmp_path: Path) -> None:
    names = set()
    for _ in range(2):
        with new_file(tmp_path, "probe") as (path, fd):
            names.add(path.name)
            assert os.fstat(fd).st_mode & 0o777 == 0o600
        assert list(tmp_path.iterdir()) == []
    assert len(names) == 2
    with pytest.raises(RuntimeError), new_file(tmp_path, "probe"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


async def test_the_record_of_an_audit_replaces_a_link_and_is_not_read_from_a_pipe(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    place = tmp_path / "store"
    place.mkdir()
    for name in (f"audit.new-{os.getpid()}", "audit"):
        (place / name).symlink_to(target)
    await write_recorded_audit(str(place), NOTE)
    assert target.read_text() == "precious"
    assert await read_recorded_audit(str(place)) == NOTE
    assert not (place / "audit").is_symlink()
    (place / "audit").unlink()
    os.mkfifo(place / "audit")
    with pytest.raises(StoreUnavailable, match=r"record of its last audit can't be read.*pipe"):
        await read_recorded_audit(str(place))


def test_a_copy_of_the_anchor_that_has_no_end_is_no_anchor(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys, monkeypatch)
    os.mkfifo(store.parent / "fifo")
    for file in ("/dev/zero", store.parent / "fifo"):
        assert "can't be read: it is a" in cli.fails(2, "audit", store, "--anchor", file)
