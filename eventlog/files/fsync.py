"""The syncs that make a file store's files durable: SlateDB itself never calls fsync.

After a flush, the new files of the write-ahead log are synced, then their folder, then the anchor is written; only then
is a commit durable. Sorted files and manifests are synced behind it (`sync_behind`), and garbage.py removes only
what a manifest replaces that is on the disk with every sorted file that it names.

A file whose sync failed once is never trusted by this process: the kernel may have dropped its data and reports the
next sync as done. Everything here blocks, and runs in threads.
"""

import contextlib
import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.files.private_folders import STORE_FOLDERS, heir_of
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.store import Anchor

__all__ = ["FileSync", "recorded_manifest", "sync_path", "write_small"]

_log = logger("store")

_SUFFIXES: Final = {"manifest": ".manifest", "compacted": ".sst", "compactions": ".compactions"}
_TICK_MS: Final = 100  # more than between two times that a file system gives
_NOTE: Final = "synced"
_TRIES: Final = 10
_NOTE_BYTES: Final = 100


class FileSync:
    """The files of one store, and which of them are known to be on the disk. Raises OSError."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        """Sync the files of the store in `folder`; with `fsync` False only the anchor is written, unsynced."""
        self.anchor = FileAnchor(folder, fsync=fsync)
        self._folder = folder
        self._wal = folder / "wal"
        self._fsync = fsync
        self._wal_fd = -1
        self._next_wal_id = 1
        # A commit whose caller gave up may still hang in here when the store is closed.
        self._lock = threading.Lock()
        self._changed_ns: dict[str, int | None] = {}
        self._synced: dict[str, set[str]] = {name: set() for name in _SUFFIXES}
        self._failed: set[str] = set()
        self._heir: tuple[int, int] | None = None
        self._is_closed = False
        self.steps = 0  # syncs that are done: a wait for many of them can see whether the disk gets on

    def record_manifest(self, manifest_id: int) -> None:
        """Record for the next opener that this manifest and its files are on the disk."""
        inode = os.lstat(self._folder / "manifest" / f"{manifest_id:020d}.manifest").st_ino
        self.steps += 1
        write_small(self._folder / _NOTE, f"{manifest_id} {inode}\n".encode())

    def opened(self, first_wal_id: int = 0, *, manifest_id: int = 0, sorted_files: Iterable[str] = ()) -> None:
        """Sync what an earlier writer, perhaps killed before its own sync, left behind; commits build on it.

        Of the log, the files from `first_wal_id` on: what those before it held is in sorted files, and they may be tens
        of thousands that were not removed yet. `manifest_id` and the `sorted_files` that it names are on the disk.
        """
        if not self._fsync:
            return
        for name in STORE_FOLDERS:
            (self._folder / name).mkdir(mode=0o700, exist_ok=True)
        self._heir = heir_of(self._folder)
        self._wal_fd = os.open(self._wal, os.O_RDONLY | os.O_DIRECTORY)
        ids = sorted(int(path.stem) for path in self._wal.glob("*.sst") if path.stem.isdigit())
        for wal_id in ids:
            if wal_id >= first_wal_id:
                self._sync_wal_file(wal_id)
        os.fsync(self._wal_fd)
        self.steps += 1
        self._next_wal_id = ids[-1] + 1 if ids else 1
        if manifest_id:
            self._synced["compacted"] = set(sorted_files)
            self._synced["manifest"] = {name for name in self._present("manifest") if _number(name) <= manifest_id}
        self.sync_behind()
        if self._failed:
            raise OSError(f"{min(self._failed)} could not be synced")
        sync_path(self._folder)
        self.steps += 1
        # A parent that this user may pass through but not read is not one in which the folder was just made.
        with contextlib.suppress(PermissionError):
            sync_path(self._folder.parent)

    def commit(self, anchor: Anchor) -> None:
        """Make the log files that appeared since the last call durable, then write `anchor`; an OSError once closed."""
        with self._lock:
            if self._is_closed:
                # The anchor is the next writer's by now.
                raise OSError(errno.EBADF, "its files were closed")
            if self._fsync:
                first = self._next_wal_id
                while self._sync_wal_file(self._next_wal_id):
                    self._next_wal_id += 1
                if self._next_wal_id != first:
                    os.fsync(self._wal_fd)
            self.anchor.write(anchor)

    def sync_behind(self) -> None:
        """Sync the sorted files and manifests that are new since the last call; costs three `stat`s when none are.

        Manifests are listed first and synced last: every sorted file that one of them names was there before it.
        """
        if not self._fsync:
            return
        manifests, compactions = self._new("manifest"), self._new("compactions")
        self._sync("compacted", self._new("compacted"))
        self._sync("manifest", manifests)
        self._sync("compactions", compactions)

    def is_synced(self, kind: str, names: Iterable[str]) -> bool:
        """Whether all these files of a folder are known to be on the disk."""
        return self._synced[kind].issuperset(names)

    def synced_numbers(self, kind: str) -> list[int]:
        """The numbers of the manifests (or lists of compactions) known to be on the disk, newest first."""
        return sorted(map(_number, self._synced[kind]), reverse=True)

    def close(self, *, wait: bool = True) -> bool:
        """Close what is open, once a commit under way is through; False when there is one and this is not to wait.

        No commit writes anything afterwards.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            self._is_closed = True
            self.anchor.close()
            if self._wal_fd >= 0:
                os.close(self._wal_fd)
                self._wal_fd = -1
        finally:
            self._lock.release()
        return True

    def _present(self, kind: str) -> set[str]:
        suffix = _SUFFIXES[kind]
        # SlateDB writes under another name first.
        return {path.name for path in (self._folder / kind).iterdir() if path.suffix == suffix}

    def _new(self, kind: str) -> set[str]:
        """The names of files that are neither synced nor given up; empty when the folder has not changed."""
        changed_ns = (self._folder / kind).stat().st_mtime_ns
        if changed_ns == self._changed_ns.get(kind):
            return set()
        # What comes within the same tick of the clock leaves the folder's time as it is: look again next time then.
        # Asked before the folder is listed, which may take longer than a tick.
        is_settled = SystemClock().now_ms() - changed_ns // 1_000_000 > _TICK_MS
        present = self._present(kind)
        self._synced[kind] &= present
        self._changed_ns[kind] = changed_ns if is_settled else None
        return {name for name in present - self._synced[kind] if f"{kind}/{name}" not in self._failed}

    def _sync(self, kind: str, names: set[str]) -> None:
        good = {name for name in names if self._try_sync(f"{kind}/{name}", self._folder / kind / name)}
        if not good:
            return
        if self._try_sync(f"{kind}/", self._folder / kind):
            self._synced[kind] |= good
        else:
            self._failed |= {f"{kind}/{name}" for name in good}

    def _try_sync(self, name: str, path: Path) -> bool:
        try:
            sync_path(path)
            if self._heir is not None:
                with contextlib.suppress(FileNotFoundError):
                    os.chown(path, *self._heir, follow_symlinks=False)
        except OSError as error:
            self._failed.add(name)
            what = "%s/%s could not be synced (%s): nothing that it replaces will be removed; check the disk"
            _log.error(what, self._folder, name, error, extra=about("sync_failed"))
            return False
        self.steps += 1
        return True

    def _sync_wal_file(self, wal_id: int) -> bool:
        try:
            fd = os.open(f"{wal_id:020d}.sst", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._wal_fd)
        except FileNotFoundError:
            return False
        try:
            os.fsync(fd)
            if self._heir is not None:
                os.fchown(fd, *self._heir)
        finally:
            os.close(fd)
        self.steps += 1
        return True


def recorded_manifest(folder: Path) -> int:
    """The newest manifest that a writer of this store knew to be on the disk with its files; 0 when none is known.

    The note names the manifest's inode too, since a copy of a store need not have been synced. Blocks.
    """
    try:
        fd = os.open(folder / _NOTE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            number, inode = os.read(fd, _NOTE_BYTES).split()
        finally:
            os.close(fd)
        found = os.lstat(folder / "manifest" / f"{int(number):020d}.manifest").st_ino == int(inode)
    except (OSError, ValueError):
        return 0
    return int(number) if found else 0


def _number(name: str) -> int:
    stem = name.partition(".")[0]
    return int(stem) if stem.isdigit() else 0


def sync_path(path: Path) -> None:
    """Sync one file or folder; one that is gone is no error. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Removed since it was listed: garbage of SlateDB's, or a file that got its final name.
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_small(path: Path, content: bytes) -> None:
    """Replace a small file so that a power cut leaves the old one or the new one, whole. Raises OSError."""
    for left in reversed(range(_TRIES)):
        beside = path.with_name(f"{path.name}.new")
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            heir = heir_of(path.parent)
            if heir is not None:
                os.fchown(fd, *heir)
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            beside.replace(path)
            break
        except FileNotFoundError:
            # A writer that was just fenced may write it at the same time, and has moved the new one into its place.
            if not left:
                raise
    sync_path(path.parent)
