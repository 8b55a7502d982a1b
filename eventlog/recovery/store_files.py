"""The sorted files and log files that lie in a store, named by a manifest or not, as salvage reads them.

A part of a disk that can't be read counts as zeros, so that the blocks around it are still had.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog.recovery.sorted_files import COMPRESSED, UNKNOWN_VERSION, Part, SstRow, damaged_ranges, read_sst

__all__ = ["FileFault", "content_of", "may_have_held", "parts_of", "problem_text", "read_rows", "sorted_files"]

# SlateDB writes files of 64 MiB as ledgerq sets it, and of 256 MiB by itself.
_MAX_FILE_BYTES: Final = 1024**3
_PIECE_BYTES: Final = 65_536

Rows = Iterator[Sequence[SstRow]]
Ranges = Sequence[tuple[bytes, bytes]] | None


class FileFault(NamedTuple):
    """The fault of a file: its path in the store, and a line for each part of it that can't be read.

    `is_foreign`: it is in a format that only SlateDB itself reads. `has_all_rows`: none of its rows is lost, since only
    its index, filter or statistics are damaged.
    """

    path: str
    problems: tuple[str, ...]
    is_foreign: bool = False
    has_all_rows: bool = False


def sorted_files(folder: Path) -> list[Path]:
    """All sorted files and log files below a store's folder, also those set aside, in a fixed order."""
    return sorted(path for path in folder.rglob("*.sst*") if not path.is_dir())


def read_rows(folder: Path, path: Path, ranges: Ranges, faults: Callable[[FileFault], None]) -> Rows:
    """The rows of a file, block by block, as far as they are in `ranges` (see `read_sst`).

    What is wrong goes to `faults`. A file that is gone meanwhile has no rows. Raises nothing.
    """
    name = str(path.relative_to(folder))
    try:
        data, problems = content_of(path)
    except FileNotFoundError:
        return
    except OSError as error:
        faults(FileFault(name, (f"it can't be read: {error.strerror or error}",)))
        return
    is_log = path.parent.name == "wal"
    is_foreign, has_all_rows = False, not problems
    for part in parts_of(data, is_log, ranges):
        if part.rows:
            yield part.rows
        if part.problem:
            is_foreign |= part.problem.startswith((COMPRESSED, UNKNOWN_VERSION))
            has_all_rows &= part.kind in ("index", "filter", "statistics")
            problems.append(problem_text(part))
    if problems:
        faults(FileFault(name, tuple(problems), is_foreign, has_all_rows))


def may_have_held(path: Path, key: bytes) -> bool:
    """Whether what can't be read of a sorted file may have held a row of `key`. Raises nothing."""
    try:
        data, _ = content_of(path)
    except OSError:
        return True
    # Without an index, or with more that is wrong, any key may have been where the damage is.
    ranges = damaged_ranges(data, [(key, key + b"\0")])
    return ranges is None or any(first <= key and (stop is None or key <= stop) for first, stop in ranges)


def parts_of(data: bytes, is_log: bool, ranges: Ranges = None) -> Iterator[Part]:
    """The parts of a sorted file, or of a log file: of those an empty one is what a writer that takes over leaves."""
    return iter(()) if is_log and not data else read_sst(data, ranges)


def problem_text(part: Part) -> str:
    """The problem of a part of a file, on one line."""
    return f"{part.kind} at byte {part.start} to {part.stop}: {part.problem}"


def content_of(path: Path) -> tuple[bytes, list[str]]:
    """The whole of a regular file, zeros where the disk gives nothing, and the problems met. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return b"", ["it is no regular file"]
        if status.st_size > _MAX_FILE_BYTES:
            return b"", [f"it has {status.st_size} bytes, more than any sorted file"]
        # In one piece if the disk lets it: the memory of many small ones is not given back.
        with suppress(OSError):
            whole = os.pread(fd, status.st_size, 0)
            if len(whole) == status.st_size:
                return whole, []
        pieces: list[bytes] = []
        problems: list[str] = []
        for at in range(0, status.st_size, _PIECE_BYTES):
            size = min(_PIECE_BYTES, status.st_size - at)
            try:
                piece = os.pread(fd, size, at)
            except OSError as error:
                problems.append(f"bytes {at} to {at + size}: the disk can't read them: {error.strerror or error}")
                piece = b""
            pieces.append(piece.ljust(size, b"\0"))
        return b"".join(pieces), problems
    finally:
        os.close(fd)
