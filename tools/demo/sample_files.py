"""The demo's work: which files become jobs, which of them fail on purpose, what is measured, and the results file.

Nothing here depends on the queue. worker_program.py has the handler that calls this, demo.py the story.
"""

import hashlib
import json
import os
import stat
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from ledgerq.eventlog.errors import InvalidArgument

__all__ = ["MAX_FILES", "MAX_TOTAL_MIB", "Fate", "Found", "Results", "fates", "find_files", "measure"]

MAX_FILES: Final = 3000
MAX_TOTAL_MIB: Final = 512
_MIB: Final = 1024 * 1024
_MAX_LOOKS: Final = 300_000
# Only in Python's own folder: what was installed into it, what is compiled from it, and the tests' odd data.
_NOT_THE_LIBRARY: Final = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests"})

Fate = Literal["none", "fail once", "dead"]
"""The failure that the demo gives to a job on purpose."""


class Found(NamedTuple):
    """The files to work on, by their paths below `root`. `limited`: there are more than the demo takes."""

    root: Path
    names: list[str]
    limited: bool

    def path(self, name: str) -> Path:
        """The full path of a file."""
        return self.root / name

    def readable(self) -> list[str]:
        """The files that this user may read."""
        return [name for name in self.names if os.access(self.path(name), os.R_OK)]


def find_files(folder: Path | None) -> Found:
    """Files below `folder`, or of Python's standard library, in order, up to the demo's limits.

    Links to folders are not followed; a link to nothing counts as a file, one that can't be read. Raises
    `InvalidArgument` when there is nothing to read.
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder).absolute()
    if not root.is_dir():
        raise InvalidArgument(f"{str(folder)!r} is not a folder: give one with some files in it")
    names: list[str] = []
    left_bytes, limited = MAX_TOTAL_MIB * _MIB, False
    for name, size_bytes in _walk(root, _NOT_THE_LIBRARY if folder is None else frozenset()):
        if len(names) == MAX_FILES:
            limited = True
            break
        if size_bytes > left_bytes:
            limited = True
            continue
        left_bytes -= size_bytes
        names.append(name)
    found = Found(root, names, limited)
    if not names:
        raise InvalidArgument(f"there are no files in {str(root)!r}, so there is no work to show: give another folder")
    if not found.readable():
        raise InvalidArgument(f"none of the {len(names)} files in {str(root)!r} can be read: give another folder")
    return found


def _walk(root: Path, skipped: frozenset[str]) -> Iterator[tuple[str, int]]:
    looks = 0
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(files):
            looks += 1
            if looks > _MAX_LOOKS:
                return
            path = Path(folder) / name
            try:
                status = path.stat()
            except OSError:
                size_bytes = 0  # the job's handler will report why
            else:
                if not stat.S_ISREG(status.st_mode):
                    continue
                size_bytes = status.st_size
            yield str(path.relative_to(root)), size_bytes


def fates(names: Sequence[str]) -> dict[str, Fate]:
    """The fate of each file on purpose: always the same, by the digests of their names.

    One in twenty fails at its first attempt, one in three hundred can never succeed; at least one each of two files.
    """
    ranked = sorted(names, key=lambda name: hashlib.blake2b(os.fsencode(name)).digest())
    n_flaky = max(1, len(ranked) // 20)
    n_dead = max(1, len(ranked) // 300) if len(ranked) > 1 else 0
    chosen: dict[str, Fate] = dict.fromkeys(names, "none")
    chosen.update(dict.fromkeys(ranked[:n_flaky], "fail once"))
    chosen.update(dict.fromkeys(ranked[n_flaky : n_flaky + n_dead], "dead"))
    return chosen


def measure(path: bytes) -> dict[str, Any]:
    """A file's BLAKE2b-256 digest, its size in bytes and its number of lines. Raises `OSError`."""
    digest = hashlib.blake2b(digest_size=32)
    size_bytes = lines = 0
    last = b"\n"
    with open(path, "rb") as file:  # noqa: PTH123 - a path of any bytes
        while chunk := file.read(_MIB):
            digest.update(chunk)
            size_bytes += len(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return {"blake2b": digest.hexdigest(), "bytes": size_bytes, "lines": lines + (last != b"\n")}


class Results:
    """The results file: a JSON line for each job. Adding a job that is there does nothing.

    A job may be worked on twice, when its worker was killed after the work and before the ack. That is what makes the
    second time harmless.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._fd, len(whole))  # a line that was cut off is written anew with its job
        self._job_ids: set[str] = {json.loads(line)["job"] for line in whole.splitlines()}

    def add(self, job_id: str, result: dict[str, Any]) -> bool:
        """Write a job's result; False when it was there already."""
        if job_id in self._job_ids:
            return False
        os.write(self._fd, json.dumps({"job": job_id, **result}).encode() + b"\n")
        self._job_ids.add(job_id)
        return True

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
