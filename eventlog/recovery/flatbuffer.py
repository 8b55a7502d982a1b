"""A reader of Flatbuffers, as far as SlateDB's sorted files use them."""

import struct

__all__ = ["FlatTable"]


class FlatTable:
    """A table; its fields go by numbers. Reading a damaged one raises ValueError, IndexError or struct.error."""

    def __init__(self, buffer: bytes, at: int | None = None) -> None:
        """The table at `at`, or the root of the buffer."""
        self._buffer = buffer
        self._at = struct.unpack_from("<I", buffer)[0] if at is None else at
        self._offsets = self._at - struct.unpack_from("<i", buffer, self._at)[0]
        if self._offsets < 0:
            raise ValueError("a table without fields")
        self._size = struct.unpack_from("<H", buffer, self._offsets)[0]

    def _place(self, field: int) -> int:
        """The position of a field; 0 where it is left out."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = struct.unpack_from("<H", self._buffer, self._offsets + entry)[0]
        return self._at + offset if offset else 0

    def u64(self, field: int) -> int:
        """An unsigned number of 64 bits; 0 where it is left out."""
        place = self._place(field)
        return int(struct.unpack_from("<Q", self._buffer, place)[0]) if place else 0

    def u8(self, field: int) -> int:
        """An unsigned number of 8 bits; 0 where it is left out."""
        place = self._place(field)
        return self._buffer[place] if place else 0

    def _vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        place = self._place(field)
        if not place:
            return 0, 0
        at = place + struct.unpack_from("<I", self._buffer, place)[0]
        count = struct.unpack_from("<I", self._buffer, at)[0]
        if at + 4 + count * item_bytes > len(self._buffer):
            raise ValueError("a list that is longer than there is")
        return at + 4, count

    def bytes(self, field: int) -> bytes:
        """A list of bytes."""
        at, count = self._vector(field, 1)
        return self._buffer[at : at + count]

    def tables(self, field: int) -> "list[FlatTable]":
        """A list of tables."""
        at, count = self._vector(field, 4)
        places = range(at, at + 4 * count, 4)
        return [FlatTable(self._buffer, p + struct.unpack_from("<I", self._buffer, p)[0]) for p in places]
