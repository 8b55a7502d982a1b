"""Making a file store's files durable: SlateDB itself never calls fsync.

After a flush, the new files of the write-ahead log are synced, then their folder, then the anchor is written; only then
is a commit durable. Sorted files and manifests are synced behind it, before anything that they replace is removed.
Everything here blocks, and runs in threads.
"""

import contextlib
import os
import threading
from pathlib import Path
from typing import Final

from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.store import Anchor

__all__ = ["FileSync"]

_SLOW_FOLDERS: Final = ("compacted", "manifest", "compactions")


class FileSync:
    """The files of one store, and which of them are known to be on the disk. Raises OSError."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        """Look after the store in `folder`; with `fsync` False only the anchor is written, unsynced."""
        self.anchor = FileAnchor(folder, fsync=fsync)
        self._folder = folder
        self._wal = folder / "wal"
        self._fsync = fsync
        self._wal_fd = -1
        self._next_wal_id = 1
        # A commit whose caller gave up may still hang in here when the store is closed.
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, set[str]]] = {}

    def opened(self, first_wal_id: int = 0) -> None:
        """Sync what an earlier writer, perhaps killed before its own sync, left behind; commits build on it.

        Of the log, the files from `first_wal_id` on. What those before it held is in sorted files, and they may be
        tens of thousands that nobody has removed yet: to sync them all would take longer than the opening may.
        """
        if not self._fsync:
            return
        self._wal_fd = os.open(self._wal, os.O_RDONLY | os.O_DIRECTORY)
        ids = sorted(int(path.stem) for path in self._wal.glob("*.sst") if path.stem.isdigit())
        for wal_id in ids:
            if wal_id >= first_wal_id:
                self._sync_wal_file(wal_id)
        os.fsync(self._wal_fd)
        self._next_wal_id = ids[-1] + 1 if ids else 1
        self.sync_behind()
        _sync_path(self._folder)
        # A parent that this user may pass through but not read is not one in which the folder was just made.
        with contextlib.suppress(PermissionError):
            _sync_path(self._folder.parent)

    def commit(self, anchor: Anchor) -> None:
        """Make the log files that appeared since the last call durable, then note `anchor`."""
        with self._lock:
            if self._fsync:
                first = self._next_wal_id
                while self._sync_wal_file(self._next_wal_id):
                    self._next_wal_id += 1
                if self._next_wal_id != first:
                    os.fsync(self._wal_fd)
            self.anchor.write(anchor)

    def sync_behind(self) -> None:
        """Sync the sorted files and manifests that are new since the last call; costs three `stat`s when none are."""
        if not self._fsync:
            return
        for name in _SLOW_FOLDERS:
            folder = self._folder / name
            try:
                changed_ns = folder.stat().st_mtime_ns
            except FileNotFoundError:
                continue
            known_ns, known = self._seen.get(name, (-1, set()))
            if changed_ns == known_ns:
                continue
            present = {path.name for path in folder.iterdir()}
            for file in present - known:
                _sync_path(folder / file)
            _sync_path(folder)
            self._seen[name] = (changed_ns, present)

    def close(self) -> None:
        """Give back what is open, once a commit under way is through."""
        with self._lock:
            self.anchor.close()
            if self._wal_fd >= 0:
                os.close(self._wal_fd)
                self._wal_fd = -1

    def _sync_wal_file(self, wal_id: int) -> bool:
        try:
            fd = os.open(f"{wal_id:020d}.sst", os.O_RDONLY, dir_fd=self._wal_fd)
        except FileNotFoundError:
            return False
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return True


def _sync_path(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        # Removed since it was listed: garbage of SlateDB's, or a file that got its final name.
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
