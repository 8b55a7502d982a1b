"""Where a tree is published: a folder or a bucket, whose files any web server may serve as they are.

Tiles are written once and never changed. The checkpoint is replaced only by one who knows the content that is there, so
two publishers can't each go on from the same tree.
"""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

from ledgerq.eventlog.errors import InvalidArgument, StoreUnavailable
from ledgerq.eventlog.files.odd_files import read_small
from ledgerq.eventlog.locations import Location, parse_location
from ledgerq.eventlog.slate.objects import Objects, Version

__all__ = ["CHECKPOINT", "FolderPlace", "ObjectPlace", "Place", "open_place"]

T = TypeVar("T")
CHECKPOINT: Final = "checkpoint"
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
_LOCK: Final = ".publisher.lock"
_READABLE_BY_ALL: Final = 0o644
_LIMIT_S: Final = 20.0


class Place(Protocol):
    """A place for published files. Every call raises `StoreUnavailable` with the cause when it can't be done."""

    @property
    def name(self) -> str:
        """Its URL or path, for messages."""

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """Keep other publishers out meanwhile, where this kind of place can; else `replace` does that alone."""

    async def get(self, name: str) -> bytes | None:
        """The content of a file, None where there is none."""

    async def create(self, name: str, content: bytes) -> bool:
        """Write a file; False when there is one already, which stays as it is."""

    async def sync(self) -> None:
        """Wait until all that was created is sure to stay."""

    async def replace(self, name: str, content: bytes, over: bytes | None) -> bool:
        """Write a file in the place of one with the content `over`, as `get` gave it, or of none; False if it isn't."""

    async def remove_folder(self, name: str) -> None:
        """Remove the files of a folder; one that is not there is no error."""


def open_place(store_url: str, destination: str | None) -> Place:
    """The place at `destination`; without one, `tlog` below the store. Raises `InvalidArgument`."""
    location = parse_location(store_url if destination is None else destination)
    if location.is_memory:
        raise InvalidArgument("a store in memory has no place to publish to: name a folder or a bucket")
    if destination is None:
        path = "/".join(part for part in (location.database, "tlog") if part)
        location = Location(location.scheme, location.root, path, f"{store_url.rstrip('/')}/tlog")
    return FolderPlace(location.folder, location.original) if location.is_file else ObjectPlace(location)


class FolderPlace:
    """A folder: a file gets its name only when it is whole and on the disk; one publisher at a time holds a lock."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Use this folder, which is made when it is first written."""
        self.name = name or str(folder)
        self._folder = folder
        self._unsynced: set[Path] = set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock; raises `StoreUnavailable` while another one does."""
        fd = await self._run(self.lock_now)
        try:
            yield
        finally:
            os.close(fd)

    def lock_now(self) -> int:
        """A descriptor that holds the lock until it is closed; blocks, and raises `StoreUnavailable` and OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(self._folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _READABLE_BY_ALL)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise StoreUnavailable(f"another publisher is at work in {self.name}: wait for its end") from error
        return fd

    async def get(self, name: str) -> bytes | None:
        """See `Place`."""
        return await self._run(self.get_now, name)

    def get_now(self, name: str) -> bytes | None:
        """Like `get`; blocks, and raises OSError."""
        try:
            return read_small(self._folder / name, MAX_FILE_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def create(self, name: str, content: bytes) -> bool:
        """See `Place`."""
        return await self._run(self._write, name, content, os.link)

    async def replace(self, name: str, content: bytes, over: bytes | None) -> bool:
        """See `Place`; to be called under the lock."""
        return await self._run(self.replace_now, name, content, over)

    def replace_now(self, name: str, content: bytes, over: bytes | None) -> bool:
        """Like `replace`; blocks, and raises OSError."""
        return self.get_now(name) == over and self._write(name, content, os.replace)

    def _write(self, name: str, content: bytes, put: Callable[[Path, Path], None]) -> bool:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, made = tempfile.mkstemp(prefix=".new.", dir=path.parent)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                os.fchmod(fd, _READABLE_BY_ALL)
                file.flush()
                os.fdatasync(fd)
            try:
                put(Path(made), path)
            except FileExistsError:
                return False
        finally:
            Path(made).unlink(missing_ok=True)
        self._unsynced.update([path.parent, *(parent for parent in path.parents if self._folder in parent.parents)])
        if put is os.replace:
            self._sync()
        return True

    async def sync(self) -> None:
        """See `Place`."""
        await self._run(self._sync)

    def _sync(self) -> None:
        for folder in sorted({*self._unsynced, self._folder}):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        self._unsynced.clear()

    async def remove_folder(self, name: str) -> None:
        """See `Place`."""
        await self._run(self._remove, self._folder / name)

    def _remove(self, folder: Path) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in folder.iterdir():
                file.unlink(missing_ok=True)
            folder.rmdir()

    async def _run(self, call: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.to_thread(call, *arguments)
        except OSError as error:
            raise StoreUnavailable(f"{self.name} can't be used ({error}): check the folder and its rights") from error


class ObjectPlace:
    """The objects below a prefix: conditional writes keep two publishers apart."""

    def __init__(self, location: Location) -> None:
        """Use the prefix; nothing is requested yet."""
        self.name = location.original
        self._objects = Objects(location, limit_s=_LIMIT_S)
        self._checkpoint: Version | None = None

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Nothing: see `replace`."""
        yield

    async def get(self, name: str) -> bytes | None:
        """See `Place`."""
        if name != CHECKPOINT:
            return await self._objects.get(name)
        self._checkpoint = await self._objects.read(name)
        return None if self._checkpoint is None else self._checkpoint.content

    async def create(self, name: str, content: bytes) -> bool:
        """See `Place`."""
        return await self._objects.create(name, content)

    async def sync(self) -> None:
        """Nothing: what a bucket has confirmed stays."""

    async def replace(self, name: str, content: bytes, over: bytes | None) -> bool:
        """See `Place`; `over` is what `get` gave last, and its version must still be there."""
        known = self._checkpoint
        if (None if known is None else known.content) != over:
            return False
        self._checkpoint = await self._objects.run(partial(self._objects.replace_now, name, content, known))
        return self._checkpoint is not None

    async def remove_folder(self, name: str) -> None:
        """See `Place`."""
        for found in await self._objects.names(f"{name}/"):
            await self._objects.delete(found)
