"""The lock on a file store, an operating system's lock, which ends with its process however that ends.

Two files in the store's folder, both locked with flock(2), neither ever removed:

    writer           locked by the writer from before SlateDB opens until after its last sync; holds its `Holder`
    writer.opening   locked by a process that is opening the store for writing, until SlateDB has fenced the writers
    before

Only the locks count: what a killed process leaves in the files hinders no opener. A live writer's lock can't be taken
away, so a writer that takes its store over puts a new, locked file in the place of `writer`, once SlateDB has fenced
the old writer and not before: an opener that is killed on the way leaves the store to the one that still writes it.
Openings come one after the other, so the last one that is through is the one that was not fenced, and it holds the
lock.

A lock belongs to the open file. Two queues in one process exclude each other, and a forked child closes its copies, or
it would keep the lock of a parent that is gone. SlateDB's fencing is what keeps the log right; the lock only keeps
openers from fencing by accident. On a file system without flock there is none, with a warning.
"""

import errno
import fcntl
import os
import stat
import threading
import time
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from ledgerq.eventlog.runtime.process import has_ended
from ledgerq.eventlog.single_writer.holder import HOLDER_NAME, MAX_HOLDER_BYTES, Holder, decode_holder

__all__ = ["FileHold", "Held", "hold_folder", "live_writer"]

_OPENING: Final = "writer.opening"
_NEW: Final = "writer.new"
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
# `live_writer` holds the lock for some microseconds, shared, and that must look like a writer to no opener.
_TRIES: Final = 4
_TRY_AGAIN_S: Final = 0.01
# The same for one that was stopped meanwhile, while the process that the holder names is gone: 5 s.
_TRIES_ENDED: Final = 500


class Held(NamedTuple):
    """The result when another process has the lock: its holder, if any, and whether it is still opening the store."""

    holder: Holder | None
    is_opening: bool


class _LockFile:
    """An open file that may be locked; closing it gives the lock back."""

    fd = -1

    def __init__(self, path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> None:
        """Open a regular file, made if it is not there. Raises OSError."""
        with _no_fork:
            self.fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            _files.add(self)
        try:
            found = os.fstat(self.fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file", str(path))
            folder = path.parent.stat()
            if os.geteuid() == 0 and found.st_uid == 0 != folder.st_uid:
                # Whose folder it is must be able to open the store when root has done so once.
                os.fchown(self.fd, folder.st_uid, folder.st_gid)
        except BaseException:
            self.close()
            raise

    def lock(self) -> bool:
        """Lock it; False when another one has. Raises OSError where there are no locks."""
        for number in range(_TRIES_ENDED):
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if number >= _TRIES - 1 and not ((holder := self.read_holder()) and has_ended(holder.identity)):
                    return False
                time.sleep(_TRY_AGAIN_S)
            else:
                return True
        return False

    def write(self, data: bytes) -> None:
        """Replace what is in it; not synced, since it counts only while this process lives."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, data, 0)

    def read_holder(self) -> Holder | None:
        """The holder in it, if it is whole."""
        decoded = decode_holder(os.pread(self.fd, MAX_HOLDER_BYTES, 0))
        return None if decoded is None else decoded[0]

    def close(self) -> None:
        """Close the file and so unlock it."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    # An abandoned store must not keep its lock for as long as the process lives.
    __del__ = close


_files: weakref.WeakSet[_LockFile] = weakref.WeakSet()
# A fork must not come between the opening of a file and its entry above: the child would not know of it.
_no_fork = threading.Lock()


def _forked() -> None:
    _no_fork.release()
    for file in list(_files):
        # Closing takes nothing from the parent, whose own copy keeps the lock.
        with suppress(OSError):
            file.close()


os.register_at_fork(before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_forked)


class FileHold:
    """A file store held for writing, until `release`. Every method blocks.

    `took_over`: a writer was alive when this began; it is fenced once SlateDB has opened. `without_locks`: the file
    system has none, and why.
    """

    def __init__(
        self,
        folder: Path,
        writer: _LockFile | None,
        opening: _LockFile | None,
        *,
        took_over: bool = False,
        without_locks: OSError | None = None,
    ) -> None:
        """Use `hold_folder`."""
        self.took_over = took_over
        self.without_locks = without_locks
        self._folder = folder
        self._writer = writer
        self._opening = opening

    def opened(self) -> None:
        """Called when SlateDB has opened the store, so that every earlier writer is fenced. Raises OSError."""
        if self.took_over and self._opening is not None:
            (self._folder / _NEW).rename(self._folder / HOLDER_NAME)
        self._close_opening()

    def release(self) -> None:
        """Let others open the store; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()
        self._close_opening()

    def _close_opening(self) -> None:
        if self._opening is not None:
            self._opening.close()
            self._opening = None


def hold_folder(folder: Path, holder: Holder, *, take_over: bool) -> FileHold | Held:
    """Hold the store in `folder`, with `take_over` also when another process writes it; else return who does.

    While another one is opening it, it is held in any case. Raises OSError.
    """
    opening = _LockFile(folder / _OPENING)
    try:
        try:
            if not opening.lock():
                return Held(opening.read_holder(), is_opening=True)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            opening.close()
            return FileHold(folder, None, None, without_locks=error)
        opening.write(holder.encode())
        hold = _hold_writer(folder, opening, holder, take_over=take_over)
    except BaseException:
        opening.close()
        raise
    if isinstance(hold, Held):
        opening.close()
    return hold


def _hold_writer(folder: Path, opening: _LockFile, holder: Holder, *, take_over: bool) -> FileHold | Held:
    writer = _LockFile(folder / HOLDER_NAME)
    is_free = writer.lock()
    if not is_free:
        found = writer.read_holder()
        writer.close()
        if not take_over:
            return Held(found, is_opening=False)
        # Left there by one that was killed while it took the store over.
        (folder / _NEW).unlink(missing_ok=True)
        writer = _LockFile(folder / _NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        if not writer.lock():
            raise OSError(errno.EAGAIN, "it was locked by another process as soon as it was made", str(folder / _NEW))
    writer.write(holder.encode())
    return FileHold(folder, writer, opening, took_over=not is_free)


def live_writer(folder: Path) -> Held | None:
    """The writer of the store in `folder` now, or its opener; None if there is none. Makes no file. Raises OSError."""
    for name in (HOLDER_NAME, _OPENING):
        try:
            file = _LockFile(folder / name, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Held(file.read_holder(), is_opening=name == _OPENING)
        finally:
            file.close()
    return None
