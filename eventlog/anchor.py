"""Where the anchor is kept: a note outside SlateDB's own files of a commit that was durable.

A store that lost its newest files opens without an error, only shorter. The anchor is how the log notices.

An encoded anchor, a *slot*, is 128 bytes, integers big-endian:

    0  magic "ledgerqA"     8  slot version u16   10 zero      16 sequence u64
    24 base offset u64     32  next offset u64    40 epoch u64  48 commit time ms i64
    56 digest (32)         88  zero              112 BLAKE2b-128 of bytes 0 to 111
"""

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import Final

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.store import Anchor

__all__ = ["SLOT_BYTES", "FileAnchor", "decode_slot", "encode_slot"]

SLOT_BYTES: Final = 128
_MAGIC: Final = b"ledgerqA"
_VERSION: Final = 1
_BODY: Final = struct.Struct(">8sH6xQQQQq32s24x")
_SUM_BYTES: Final = 16
# Each slot has a disk block of its own, so that writing one can never tear the other.
_SLOT_AT: Final = (0, 4096)
_FILE_BYTES: Final = 8192


def encode_slot(sequence: int, anchor: Anchor) -> bytes:
    """`SLOT_BYTES` bytes that hold an anchor, its place in the order of anchors, and a checksum of both."""
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


class FileAnchor:
    """Two slots of one small file, overwritten in place in turn. Every method blocks: call them from a thread."""

    def __init__(self, folder: Path, *, fsync: bool) -> None:
        """Keep the anchor of the store in `folder`; nothing is opened yet."""
        self._path = folder / "anchor"
        self._fsync = fsync
        self._fd = -1
        self._sequence = 0

    def read(self) -> Anchor | None:
        """The newest anchor, or None; never writes."""
        found = self._newest()
        return found[1] if found is not None else None

    def write(self, anchor: Anchor) -> None:
        """Overwrite the older slot, and sync it if that was asked for. Raises OSError."""
        if self._fd < 0:
            self._open()
        self._sequence += 1
        os.pwrite(self._fd, encode_slot(self._sequence, anchor), _SLOT_AT[self._sequence % 2])
        if self._fsync:
            os.fdatasync(self._fd)

    def close(self) -> None:
        """Give the file back; a later `write` opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _newest(self) -> tuple[int, Anchor] | None:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        slots = [decode_slot(data[at : at + SLOT_BYTES]) for at in _SLOT_AT]
        return max((slot for slot in slots if slot is not None), key=lambda slot: slot[0], default=None)

    def _open(self) -> None:
        found = self._newest()
        self._sequence = found[0] if found is not None else 0
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if os.fstat(self._fd).st_size < _FILE_BYTES:
            # Its full size now, so that later writes change no metadata and fdatasync has one block to write.
            os.pwrite(self._fd, bytes(1), _FILE_BYTES - 1)
            if self._fsync:
                os.fsync(self._fd)
                _sync_folder(self._path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
