"""Odd files, which are refused: pipes, devices, sockets, folders, links to such, and files of an impossible size.

SlateDB opens whatever has the right name. A pipe then waits for ever, in a thread that keeps the process from ending; a
device is read without end; a manifest of a terabyte, which costs nothing as a sparse file, ends the process for want of
memory. So before SlateDB opens the store, and before anything here reads or writes, such a file is refused by name.

A symbolic link to a regular file is as good as that file where it is only read. Nothing is ever written through one:
what is written in place is opened by `open_in_place`, and a new file is made by `new_file` under a name that can't be
foreseen.
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.files.private_folders import heir_of
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.runtime.commands import salvage_command

__all__ = [
    "OWNER_ONLY",
    "OddFile",
    "find_odd_files",
    "new_file",
    "open_in_place",
    "read_small",
    "refuse_odd_files",
]

OWNER_ONLY: Final = 0o600

_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_RESTORE: Final = "move it away and restore the file from a copy"


class _Kind(NamedTuple):
    """The files of one folder that end in `suffix`: what they hold at most, and what to do about one that is odd."""

    suffix: str
    most_bytes: int | None
    remedy: str


# Manifests, lists of compactions and boundaries are read into memory whole; a manifest takes some hundred bytes for
# each sorted file. Log and sorted files have no bound: they are read in pieces, and there may be tens of thousands of
# them, whose type comes with the listing but whose size would cost a call each.
_KINDS: Final = {
    "manifest": _Kind(".manifest", 256 * _MIB, f"{_RESTORE}; without one the manifest before it is used"),
    "wal": _Kind(".sst", None, f"{_RESTORE}; what is missing without one is noticed and named"),
    "compacted": _Kind(".sst", None, _RESTORE),
    "compactions": _Kind(
        ".compactions",
        256 * _MIB,
        "remove the folder compactions/ and gc/compactions.boundary: they hold what is to be done, nothing that was "
        "written",
    ),
    "gc": _Kind(".boundary", 4 * _KIB, "remove it: it only records which files were removed as garbage"),
}
# Those without which the rows of others can still be read.
_WITH_ROWS: Final = ("manifest/", "wal/", "compacted/")
_ANCHOR: Final = "anchor"
_MOST_SMALL_BYTES: Final = 64 * _KIB
_SMALL: Final = {
    _ANCHOR: f"{_RESTORE}, or remove it, and the next writer makes a new one",
    "synced": "remove it: it only records what is known to be on the disk",
    "synced.new": "remove it: it is what a writer that was killed left",
}
_TYPES: Final = (
    (stat.S_ISFIFO, "a pipe (FIFO)"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISDIR, "a folder"),
)


class OddFile(NamedTuple):
    """A file that must not be opened: `name` within the store's folder, what is wrong with it, what to do about it."""

    name: str
    what: str
    remedy: str


def refuse_odd_files(location: Location, *, writing: bool) -> None:
    """Raise `StoreUnavailable` with the name of the first odd file of the store at `location`, and OSError.

    It blocks: call it in a thread.
    """
    for odd in find_odd_files(location.folder, writing=writing):
        save = f"; or save what is there with: {salvage_command(location.original)}"
        more = save if odd.name.startswith(_WITH_ROWS) else ""
        raise StoreUnavailable(f"{location.original} can't be used: {odd.name} {odd.what}; {odd.remedy}{more}")


def find_odd_files(folder: Path, *, writing: bool) -> Iterator[OddFile]:
    """The odd files of the store in `folder`, looked for without opening any.

    A file of a name that SlateDB doesn't know counts only when even syncing it could hang. Raises OSError.
    """
    for name, kind in _KINDS.items():
        try:
            entries = os.scandir(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                is_regular = entry.is_file(follow_symlinks=False)
                if is_regular and (kind.most_bytes is None or not entry.name.endswith(kind.suffix)):
                    continue
                if not is_regular and entry.is_dir() and not entry.name.endswith(kind.suffix):
                    continue
                what = _what(entry, kind.most_bytes)
                if what is not None:
                    yield OddFile(f"{name}/{entry.name}", what, kind.remedy)
    for name, remedy in _SMALL.items():
        what = _what(folder / name, _MOST_SMALL_BYTES)
        if what is not None:
            yield OddFile(name, what, remedy)
        elif writing and name == _ANCHOR and (folder / name).is_symlink():
            yield OddFile(name, "is a symbolic link, and nothing is written through one", "put the file in its place")


def _what(file: "os.DirEntry[str] | Path", most_bytes: int | None) -> str | None:
    """The fault of a file, or None, also for one that is gone meanwhile."""
    try:
        found = file.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    is_link = stat.S_ISLNK(found.st_mode)
    if is_link:
        try:
            found = file.stat()
        except OSError as error:
            return f"is a symbolic link that leads nowhere ({error.strerror})"
    what = _wrong(found, most_bytes)
    return what if what is None or not is_link else f"is a symbolic link to a file that {what}"


def _wrong(found: os.stat_result, most_bytes: int | None) -> str | None:
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for test, words in _TYPES if test(found.st_mode)), "of an unknown kind")
        return f"is {kind}, not a regular file"
    if most_bytes is not None and found.st_size > most_bytes:
        return f"has {found.st_size} bytes, and at most {most_bytes} can be right"
    return None


def read_small(path: Path, most_bytes: int) -> bytes:
    """All of a regular file, or of one that a link leads to.

    Raises OSError with the reason for anything else, for more than `most_bytes`, and for a file that is not there.
    """
    # Without O_NONBLOCK opening a pipe would wait for a writer on its other end.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _require_regular(fd, path, most_bytes)
        with os.fdopen(fd, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    finally:
        os.close(fd)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it grew beyond {most_bytes} bytes", str(path))
    return content


def open_in_place(path: Path, most_bytes: int) -> int:
    """A descriptor to read and overwrite the regular file `path`, made if it is not there; never through a link.

    Raises OSError.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    fd = os.open(path, flags, OWNER_ONLY)
    try:
        _require_regular(fd, path, most_bytes)
        _give(fd, path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _give(fd: int, folder: Path) -> None:
    heir = heir_of(folder)
    if heir is not None:
        os.fchown(fd, *heir)


def _require_regular(fd: int, path: Path, most_bytes: int) -> None:
    what = _wrong(os.fstat(fd), most_bytes)
    if what is not None:
        raise OSError(errno.EINVAL, f"it {what}", str(path))


@contextmanager
def new_file(folder: Path, name: str) -> Iterator[tuple[Path, int]]:
    """A new, empty file in `folder` whose name begins with `name`, and a descriptor to write it.

    It is removed at the end, however the block ends; one that got another name meanwhile stays. Raises OSError.
    """
    # Made with O_EXCL, for its owner only: neither a file nor a link that is there already is ever written.
    fd, made = tempfile.mkstemp(prefix=f"{name}.", dir=folder)
    path = Path(made)
    try:
        _give(fd, folder)
        yield path, fd
    finally:
        os.close(fd)
        path.unlink(missing_ok=True)
