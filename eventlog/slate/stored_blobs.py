"""Blobs in a folder and in a bucket, beside the files of SlateDB.

What blocks is called in threads, a piece at a time, so memory does not grow with a blob.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import obstore
from obstore.exceptions import BaseError, NotFoundError

from ledgerq.eventlog.blobs import FOLDER, PIECE_BYTES, Blobs
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.files.odd_files import OWNER_ONLY
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.slate.objects import Objects

__all__ = ["FileBlobs", "folder_blobs", "stored_blobs"]

_T = TypeVar("_T")
_NOT_FOUND: Final = (NotFoundError, FileNotFoundError)
_PART: Final = ".part"
_REQUEST_LIMIT_S: Final = 180.0
_MULTIPART_BYTES: Final = 8 * 1024 * 1024


class _Writer(Protocol):
    def write(self, piece: bytes, /) -> object: ...
    def finish(self) -> None: ...
    def abandon(self) -> None: ...


class _Blocking(Protocol):
    def create(self, name: str) -> _Writer: ...
    def pieces(self, name: str) -> Iterator[bytes]: ...
    def delete(self, name: str) -> None: ...
    def names(self) -> list[str]: ...


class _Threaded:
    """Blobs of a place whose calls block; `url` is for messages."""

    def __init__(self, place: _Blocking, url: str) -> None:
        self._place = place
        self._url = url

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write a blob; it is durable when this returns."""
        writer = await self._call(self._place.create, name)
        try:
            async for piece in pieces:
                await self._call(writer.write, piece)
            await self._call(writer.finish)
        except BaseException:
            await asyncio.shield(asyncio.to_thread(writer.abandon))
            raise

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of a blob in pieces."""
        pieces = await self._call(self._place.pieces, name)
        while (piece := await self._call(next, pieces, b"")) != b"":
            yield piece

    async def delete(self, name: str) -> None:
        """Remove a blob."""
        await self._call(self._place.delete, name)

    async def names(self) -> list[str]:
        """All names."""
        return await self._call(self._place.names)

    async def _call(self, call: Callable[..., _T], *arguments: Any) -> _T:
        try:
            return await asyncio.to_thread(call, *arguments)
        except _NOT_FOUND as error:
            raise FileNotFoundError(str(error)) from error
        except (BaseError, OSError) as error:
            raise StoreUnavailable(f"{self._url}: a payload in {FOLDER}/ can't be read or written: {error}") from error


class _FileWriter:
    def __init__(self, path: Path, *, fsync: bool) -> None:
        self._path, self._fsync = path, fsync
        self._part = path.with_name(path.name + _PART)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(self._part, flags, OWNER_ONLY), "wb", buffering=0)

    def write(self, piece: bytes, /) -> None:
        left = memoryview(piece)
        while left:
            left = left[self._file.write(left) :]

    def finish(self) -> None:
        if self._fsync:
            os.fsync(self._file.fileno())
        self._file.close()
        self._part.rename(self._path)
        if self._fsync:
            _sync_folder(self._path.parent)

    def abandon(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


class FileBlobs:
    """Blobs as files of a folder: written beside, synced, then renamed."""

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = folder / FOLDER
        self._fsync = fsync

    def create(self, name: str) -> _FileWriter:
        """A new file."""
        if not self._folder.is_dir():
            self._folder.mkdir(0o700, exist_ok=True)
            if self._fsync:
                _sync_folder(self._folder.parent)
        return _FileWriter(self._folder / name, fsync=self._fsync)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The bytes of a file."""
        # A pipe under that name would be waited for without end.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        file = os.fdopen(os.open(self._folder / name, flags), "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(f"{self._folder / name} is not a file")
        return _read(file)

    def delete(self, name: str) -> None:
        """Remove a file."""
        (self._folder / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """The names of all files."""
        with suppress(FileNotFoundError):
            return sorted(path.name for path in self._folder.iterdir())
        return []


def _read(file: Any) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _ObjectWriter:
    """A multipart upload: nothing is there before `finish`, and what was sent is the service's to forget."""

    def __init__(self, store: Any, name: str) -> None:
        self._writer = obstore.open_writer(store, name, buffer_size=_MULTIPART_BYTES)

    def write(self, piece: bytes, /) -> None:
        self._writer.write(piece)

    def finish(self) -> None:
        self._writer.close()

    def abandon(self) -> None:
        del self._writer


class _BucketBlobs:
    def __init__(self, location: Location) -> None:
        self._store = Objects(location, limit_s=_REQUEST_LIMIT_S).store

    def create(self, name: str) -> _ObjectWriter:
        return _ObjectWriter(self._store, f"{FOLDER}/{name}")

    def pieces(self, name: str) -> Iterator[bytes]:
        stream = obstore.get(self._store, f"{FOLDER}/{name}").stream(min_chunk_size=PIECE_BYTES)
        return (bytes(chunk) for chunk in stream)

    def delete(self, name: str) -> None:
        with suppress(*_NOT_FOUND):
            obstore.delete(self._store, f"{FOLDER}/{name}")

    def names(self) -> list[str]:
        found = (one["path"] for some in obstore.list(self._store, prefix=FOLDER) for one in some)
        return sorted(path.rpartition("/")[2] for path in found)


def folder_blobs(folder: Path) -> Blobs:
    """The blobs of a store in a folder, to be read."""
    return _Threaded(FileBlobs(folder), str(folder))


def stored_blobs(location: Location, *, fsync: bool = True) -> Blobs:
    """The blobs beside the store at `location`."""
    place = FileBlobs(location.folder, fsync=fsync) if location.is_file else _BucketBlobs(location)
    return _Threaded(place, location.original)
