"""Blobs: payloads too large for a row, each a file or an object beside the store's own, streamed in and out.

A blob is written before the event that names it, under a name that no other has, so nothing is ever written over; it is
deleted after the event by which its job is gone is durable. One of which there is no such event is an orphan, and is
deleted later. The log has its size and a digest that is keyed with a salt, which stands in the job's payload record:
nothing about it can be guessed from the log.
"""

from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any, Final, Protocol

from msgspec import MsgspecError, Struct
from msgspec.msgpack import Decoder

from ledgerq.eventlog.codec import DIGEST_BYTES, pack
from ledgerq.eventlog.entropy import job_id_bytes, job_id_ms, job_id_text
from ledgerq.eventlog.errors import InvalidArgument, PayloadMissing
from ledgerq.eventlog.facts import Count, Digest, Id

__all__ = ["FOLDER", "PIECE_BYTES", "Blob", "BlobName", "Blobs", "MemoryBlobs", "checked", "decode_blob", "encode_blob"]

FOLDER: Final = "blobs"
PIECE_BYTES: Final = 256 * 1024
"""So many bytes are handled at a time: what is to be hashed holds the event loop for less than a millisecond."""


class Blob(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """What the log has of a blob: its id, its size, and the BLAKE2b-256 of its bytes, keyed with the salt."""

    id: Id
    size_bytes: Count
    digest: Digest


_decode: Final = Decoder(Blob).decode


def encode_blob(blob: Blob) -> bytes:
    """The bytes of a blob's description, as they stand in a job's terms."""
    return pack(blob)


def decode_blob(value: bytes) -> Blob:
    """The description in a job's terms; raises `ValueError` when it is malformed."""
    try:
        return _decode(value)
    except MsgspecError as error:
        raise ValueError(f"a blob's description can't be decoded: {error}") from error


class BlobName(Struct, frozen=True):
    """The name of a blob: its own ULID and that of its job, with a dash between."""

    id: bytes
    job: bytes

    def __str__(self) -> str:
        return f"{job_id_text(self.id)}-{job_id_text(self.job)}"

    @property
    def since_ms(self) -> int:
        """When it was begun."""
        return job_id_ms(self.id)

    @classmethod
    def parse(cls, text: str) -> "BlobName | None":
        """The name in a listing, also of a file that is not whole yet; None for what is no blob's."""
        id, _, job = text.partition(".")[0].partition("-")
        try:
            return cls(job_id_bytes(id), job_id_bytes(job))
        except InvalidArgument:
            return None


class Blobs(Protocol):
    """The blobs of one store."""

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Write a blob; it is durable when this returns, and not there when it raises. May raise `StoreUnavailable`."""

    def get(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of a blob in pieces; raises `FileNotFoundError` when it is not there, or `StoreUnavailable`."""

    async def delete(self, name: str) -> None:
        """Remove a blob; one that is not there is no error. May raise `StoreUnavailable`."""

    async def names(self) -> list[str]:
        """All names, those of blobs that are not whole among them. May raise `StoreUnavailable`."""


class MemoryBlobs:
    """The blobs of a store in memory; `stored` is what survives a crash."""

    def __init__(self, stored: dict[str, bytes]) -> None:
        self._stored = stored

    async def put(self, name: str, pieces: AsyncIterator[bytes]) -> None:
        """Keep a blob."""
        self._stored[name] = b"".join([piece async for piece in pieces])

    async def get(self, name: str) -> AsyncIterator[bytes]:
        """The bytes of a blob in pieces."""
        if (found := self._stored.get(name)) is None:
            raise FileNotFoundError(name)
        for at in range(0, len(found), PIECE_BYTES):
            yield found[at : at + PIECE_BYTES]

    async def delete(self, name: str) -> None:
        """Remove a blob."""
        self._stored.pop(name, None)

    async def names(self) -> list[str]:
        """All names."""
        return list(self._stored)


def keyed(salt: bytes) -> Any:
    """The hash of a blob, which is updated with its bytes."""
    return blake2b(key=salt, digest_size=DIGEST_BYTES)


async def checked(blobs: Blobs, name: BlobName, blob: Blob, salt: bytes) -> AsyncIterator[bytes]:
    """The bytes of a blob in pieces; raises `PayloadMissing`, at the end at the latest, when they are others."""
    digest, size_bytes = keyed(salt), 0
    what = f"the payload of job {job_id_text(name.job)}, {FOLDER}/{name},"
    try:
        async for piece in blobs.get(str(name)):
            digest.update(piece)
            size_bytes += len(piece)
            if size_bytes > blob.size_bytes:
                break
            yield piece
    except FileNotFoundError as error:
        raise PayloadMissing(f"{what} is missing") from error
    if size_bytes != blob.size_bytes:
        found = "more" if size_bytes > blob.size_bytes else str(size_bytes)
        raise PayloadMissing(f"{what} has {found} bytes, and {blob.size_bytes} were given")
    if digest.digest() != blob.digest:
        raise PayloadMissing(f"{what} doesn't match its digest")
