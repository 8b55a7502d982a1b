"""Readers and writers of the anchor: the offset and digest of a durable commit, kept outside SlateDB's own files.

A store that lost its newest files opens without an error, only shorter. The log finds out by the anchor.

An encoded anchor, a *slot*, is 128 bytes, integers big-endian:

    0  magic "ledgerqA"     8  slot version u16   10 zero      16 sequence u64
    24 base offset u64     32  next offset u64    40 epoch u64  48 commit time ms i64
    56 digest (32)         88  zero              112 BLAKE2b-128 of bytes 0 to 111
"""

import asyncio
import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.files.odd_files import open_in_place, read_small
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.store import Anchor

__all__ = [
    "MAX_FILE_BYTES",
    "SLOT_BYTES",
    "FileAnchor",
    "ObjectAnchor",
    "decode_slot",
    "encode_slot",
    "newest_slot",
]

SLOT_BYTES: Final = 128
_MAGIC: Final = b"ledgerqA"
_VERSION: Final = 1
_BODY: Final = struct.Struct(">8sH6xQQQQq32s24x")
_SUM_BYTES: Final = 16
# Each slot has a disk block of its own, so that writing one can never tear the other.
_SLOT_AT: Final = (0, 4096)
_FILE_BYTES: Final = 8192
MAX_FILE_BYTES: Final = 64 * 1024
# Each write is a billed request, so the object may lag by this much.
_OBJECT_EVERY_MS: Final = 60_000

_log = logger("store")


def encode_slot(sequence: int, anchor: Anchor) -> bytes:
    """`SLOT_BYTES` bytes that hold an anchor, its sequence number, and a checksum of both."""
    if len(anchor.digest) != 32:
        raise InvalidArgument(f"an anchor's digest has 32 bytes, not {len(anchor.digest)}")
    body = _BODY.pack(
        _MAGIC,
        _VERSION,
        sequence,
        anchor.base_offset,
        anchor.next_offset,
        anchor.epoch,
        anchor.time_ms,
        anchor.digest,
    )
    return body + blake2b(body, digest_size=_SUM_BYTES).digest()


def decode_slot(slot: bytes) -> tuple[int, Anchor] | None:
    """The sequence and the anchor in a slot; None when it was never written, is torn, or is of an unknown version."""
    if len(slot) < SLOT_BYTES:
        return None
    body, checksum = slot[: _BODY.size], slot[_BODY.size : SLOT_BYTES]
    if blake2b(body, digest_size=_SUM_BYTES).digest() != checksum:
        return None
    magic, version, sequence, base, following, epoch, time_ms, digest = _BODY.unpack(body)
    if magic != _MAGIC or version != _VERSION:
        return None
    return sequence, Anchor(base, following, digest, epoch, time_ms)


def newest_slot(data: bytes) -> tuple[int, Anchor] | None:
    """The newest of the slots in a file store's anchor, or the one slot of an object; None where none can be read."""
    slots = [decode_slot(data[at : at + SLOT_BYTES]) for at in _SLOT_AT]
    return max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)


class FileAnchor:
    """Two slots of one small file, overwritten in place in turn. Every method blocks: call them from a thread."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        """Read and write the anchor of the store in `folder`; nothing is opened yet."""
        self._path = folder / "anchor"
        self._fsync = fsync
        self._fd = -1
        self._sequence = 0

    def read(self) -> Anchor | None:
        """The newest anchor, or None; never writes."""
        found = self._newest()
        return found[1] if found is not None else None

    def is_in_doubt(self) -> bool:
        """Whether a later anchor than that of `read` may have been written: the other slot can't be read.

        That one was written before the other or after it: which of them, its bytes no longer tell. The first anchor
        of a store stands alone.
        """
        try:
            data = read_small(self._path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return False
        slots, found = [data[at : at + SLOT_BYTES] for at in _SLOT_AT], newest_slot(data)
        is_alone = found is not None and found[0] <= 1
        return found is not None and any(decode_slot(slot) is None and (any(slot) or not is_alone) for slot in slots)

    def write(self, anchor: Anchor) -> None:
        """Overwrite the older slot, and sync it if that was asked for. Raises OSError."""
        if self._fd < 0:
            self._open()
        self._sequence += 1
        os.pwrite(self._fd, encode_slot(self._sequence, anchor), _SLOT_AT[self._sequence % 2])
        if self._fsync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _newest(self) -> tuple[int, Anchor] | None:
        try:
            data = read_small(self._path, MAX_FILE_BYTES)
        except FileNotFoundError:
            return None
        return newest_slot(data)

    def _open(self) -> None:
        found = self._newest()
        self._sequence = found[0] if found is not None else 0
        self._fd = open_in_place(self._path, MAX_FILE_BYTES)
        if os.fstat(self._fd).st_size < _FILE_BYTES:
            # Its full size now, so that later writes change no metadata and fdatasync has one block to write.
            os.pwrite(self._fd, bytes(1), _FILE_BYTES - 1)
            if self._fsync:
                os.fsync(self._fd)
                _sync_folder(self._path.parent)


class ObjectAnchor:
    """The object `anchor` under the store's prefix, written at most once a minute and at close.

    It is written behind the commits and never delays one; a write that fails is logged and tried a minute later.
    """

    def __init__(self, objects: Objects, clock: Clock) -> None:
        """Read and write the anchor among `objects`; nothing is requested yet."""
        self._objects = objects
        self._clock = clock
        self._noted: Anchor | None = None
        self._written: Anchor | None = None
        self._due_ms = 0
        self._task: asyncio.Task[None] | None = None

    async def read(self) -> Anchor | None:
        """The anchor, or None. Raises `StoreUnavailable`; never writes."""
        data = await self._objects.get("anchor")
        found = decode_slot(data) if data is not None else None
        return found[1] if found is not None else None

    def record(self, anchor: Anchor) -> None:
        """Remember the anchor of a durable commit, and begin to write it if a minute has passed since the last one."""
        if self._noted is not None and anchor.next_offset < self._noted.next_offset:
            return  # of two commits that overlapped the later one came first
        self._noted = anchor
        now_ms = self._clock.now_ms()
        # A clock that was set back must not silence the anchor.
        is_due = now_ms >= self._due_ms or now_ms < self._due_ms - _OBJECT_EVERY_MS
        if is_due and (self._task is None or self._task.done()):
            self._due_ms = now_ms + _OBJECT_EVERY_MS
            self._task = asyncio.create_task(self._write(anchor))

    async def close(self, *, write_last: bool) -> None:
        """Wait for the write under way; with `write_last` write the newest anchor if it wasn't yet."""
        if self._task is not None:
            await self._task
        if write_last and self._noted is not None and self._noted != self._written:
            await self._write(self._noted)

    async def _write(self, anchor: Anchor) -> None:
        try:
            # One object replaces the other, so their order needs no sequence.
            await self._objects.put("anchor", encode_slot(0, anchor))
            self._written = anchor
        except LedgerError as error:
            what = "the anchor was not written, trying again in a minute: %s"
            _log.warning(what, error, extra=about("anchor_unwritten"))


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
