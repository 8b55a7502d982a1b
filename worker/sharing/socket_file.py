"""The Unix socket in a store's folder, by which the store's writer serves other processes of this machine.

Only the process that holds the store's lock binds it, so what is found there is that process's, or was left by one that
is gone; a writer replaces it. Whoever binds or removes it holds a lock on the folder meanwhile, so that a writer which
ends does not remove the socket of the next one. Its mode is 600: who may write the store's files may use it.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.files.private_folders import heir_of

__all__ = ["SOCKET_NAME", "SocketFile", "reachable"]

SOCKET_NAME: Final = "socket"
_NEW: Final = "socket.new"
_BACKLOG: Final = 512
# A path in a socket's address has 108 bytes on Linux, one of them the NUL at its end.
_MAX_PATH_BYTES: Final = 107
_OWNER_ONLY: Final = 0o600


@contextmanager
def reachable(folder: Path, name: str = SOCKET_NAME) -> Iterator[str]:
    """The path of a socket in `folder` for an address, by a descriptor of the folder where it is too long.

    Raises OSError when the folder is not there.
    """
    path = str(folder / name)
    if len(os.fsencode(path)) <= _MAX_PATH_BYTES:
        yield path
        return
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock on the folder, for some microseconds. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class SocketFile:
    """The socket of the writer of the store in `folder`, which listens from when this is made. Every method blocks."""

    def __init__(self, folder: Path) -> None:
        """Bind it in the place of one that is there. Raises `StoreUnavailable`."""
        self._folder = folder
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Its file has this mode from its first moment on.
            os.fchmod(self.listening.fileno(), _OWNER_ONLY)
            with _locked(folder), reachable(folder, _NEW) as path:
                (folder / _NEW).unlink(missing_ok=True)
                self.listening.bind(path)
                (folder / _NEW).chmod(_OWNER_ONLY)
                if (heir := heir_of(folder)) is not None:
                    os.chown(folder / _NEW, *heir)
                self.listening.setblocking(False)
                # Who comes before the queue is ready waits.
                self.listening.listen(_BACKLOG)
                self._identity = _identity(folder / _NEW)
                (folder / _NEW).rename(folder / SOCKET_NAME)
        except OSError as error:
            self.listening.close()
            reason = error.strerror or error
            raise StoreUnavailable(
                f"{folder}: no socket for other processes can be made there ({reason}); a file system that has sockets "
                "and locks is needed to share a store"
            ) from error

    def remove(self) -> None:
        """Stop listening and remove it, unless another writer has replaced it; a second call does nothing."""
        self.listening.close()
        with suppress(OSError), _locked(self._folder):
            if _identity(self._folder / SOCKET_NAME) == self._identity:
                (self._folder / SOCKET_NAME).unlink()


def _identity(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_dev, found.st_ino
