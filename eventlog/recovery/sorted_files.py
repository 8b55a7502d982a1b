"""A reader of SlateDB's sorted files and log files without SlateDB: block by block, on behind a damaged one.

SlateDB gives up a whole scan at the first bad block, and a whole file when its index is damaged. Each block carries a
checksum of its own, so the others can still be trusted. This is the format of slatedb 0.17.0 (version 2 of its sorted
files), integers big-endian:

    file         blocks, filter, index, statistics, description, u64 position of the description, u16 version
    each part    its bytes, then their CRC-32; a filter and statistics may be missing, a log file never has them
    block        rows, then u16 positions of each 16th row, then u16 how many positions
    row          varints: bytes shared with the key before (0 for each 16th row), bytes not shared, bytes of the value;
                 the key's rest, the value, u64 sequence number, u8 flags, and by the flags up to two times i64
    index        a flatbuffer: position and first key of each block (of a log file: its first sequence number)
    description  a flatbuffer: positions and lengths of filter, index and statistics, and whether blocks are compressed

Without an index the end of a block is found by reading its rows: after each of them it is known exactly what must
follow if it was the last one, and the checksum decides.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ledgerq.eventlog.recovery.flatbuffer import FlatTable

__all__ = ["COMPRESSED", "UNKNOWN_VERSION", "Part", "SstRow", "damaged_block_of", "damaged_ranges", "read_sst"]

_VERSION: Final = 2
_FOOTER: Final = struct.Struct(">QH")
_SUM_BYTES: Final = 4
_RESTART_ROWS: Final = 16
# A block is closed at this size at most; only one row alone may be larger.
_MAX_BLOCK_BYTES: Final = 65_536
_COMPRESSIONS: Final = ("none", "snappy", "zlib", "lz4", "zstd")
_u16: Final = struct.Struct(">H")
_u64: Final = struct.Struct(">Q")

COMPRESSED: Final = "its blocks are compressed"
UNKNOWN_VERSION: Final = "its format's version is"


class SstRow(NamedTuple):
    """A row of a block; the value of a removed key is None. Of the rows of a key the highest `seq` is the newest."""

    key: bytes
    value: bytes | None
    seq: int


class Part(NamedTuple):
    """A part of a file, from byte `start` to `stop`: a block, the filter, the index, the statistics, the description.

    When the description is damaged, what lies behind the last block is the rest.
    `problem` is why it can't be read, and empty when it can. Only a block that was wanted has `rows`.
    """

    kind: str
    start: int
    stop: int
    rows: Sequence[SstRow] = ()
    problem: str = ""


class _Damaged(Exception):
    """An error in the structure of the bytes."""


class _Layout(NamedTuple):
    """The positions of a file's parts: (start, length), a length of 0 meaning that there is none."""

    filter: tuple[int, int]
    index_at: tuple[int, int]
    statistics: tuple[int, int]
    blocks_end: int
    is_log: bool


def read_sst(data: bytes, ranges: Sequence[tuple[bytes, bytes]] | None = None) -> Iterator[Part]:
    """Every part of a file in its order, read or with what is wrong; nothing is raised, whatever the bytes are.

    `ranges`: of a sorted file only blocks that may hold a key with `start <= key < stop` of one of them give rows; the
    others are checked all the same. A block whose checksum is right holds what was written, unless it was found behind
    a damaged stretch of a file without an index: there a payload that itself is such a file may show its blocks.
    """
    try:
        layout, described_at = _description(data)
    except _Damaged as error:
        problem = str(error)
        if not problem.startswith((COMPRESSED, UNKNOWN_VERSION)):
            for part in _walk(data, 0, len(data)):
                # Behind the last block lie filter, index and statistics, whose positions are not known.
                is_rest = part.problem != "" and part.stop == len(data)
                yield part._replace(kind="rest", problem="no block is here") if is_rest else part
        yield Part("description", max(0, len(data) - _FOOTER.size), len(data), (), problem)
        return
    try:
        index = _index(data, *layout.index_at)
    except _Damaged as error:
        yield from _walk(data, 0, layout.blocks_end)
        index_part = Part("index", layout.index_at[0], sum(layout.index_at), (), str(error))
    else:
        yield from _indexed(data, index, layout, ranges)
        index_part = Part("index", layout.index_at[0], sum(layout.index_at))
    if layout.filter[1]:
        yield _summed("filter", data, *layout.filter)
    yield index_part
    if layout.statistics[1]:
        yield _summed("statistics", data, *layout.statistics)
    yield Part("description", described_at, len(data))


def damaged_ranges(data: bytes, wanted: Sequence[tuple[bytes, bytes]] = ()) -> list[tuple[bytes, bytes | None]] | None:
    """First key and stop key (None: no end) of each damaged block of a sorted file; None when more is damaged.

    Of a block whose checksum is right the rows are looked at only if it may hold a key of `wanted`.
    """
    parts = list(read_sst(data, wanted))
    if any(part.problem and part.kind != "block" for part in parts):
        return None
    layout, _ = _description(data)
    firsts: list[bytes | None] = [first for _, first in _index(data, *layout.index_at)]
    blocks = [part for part in parts if part.kind == "block"]
    found = zip(blocks, firsts, [*firsts[1:], None], strict=True)
    return [(first or b"", following) for part, first, following in found if part.problem]


def damaged_block_of(data: bytes, key: bytes) -> tuple[Part, bytes | None] | None:
    """The damaged block of a sorted file in which `key` would be, when all of the file that leads there is in order.

    And the key's value in the block behind it, where there is one: the damaged block may have held a newer one. None
    when its block is in order, or when more of the file is damaged than a block: then its rows are not known.
    """
    try:
        layout, _ = _description(data)
        index = _index(data, *layout.index_at)
    except _Damaged:
        return None
    if layout.is_log or (layout.filter[1] and not _sum_holds(data, layout.filter[0], sum(layout.filter))):
        return None
    stops = [*(start for start, _ in index[1:]), layout.blocks_end]
    for (start, first), stop, following in zip(index, stops, [*(first for _, first in index[1:]), None], strict=True):
        if first <= key and (following is None or key <= following) and not _sum_holds(data, start, stop):
            rows = (row for part in read_sst(data, [(key, key + b"\0")]) if part.start == stop for row in part.rows)
            found = next((row.value for row in rows if row.key == key), None)
            return Part("block", start, stop, (), _SUM_WRONG), found
    return None


def _summed(kind: str, data: bytes, start: int, length: int) -> Part:
    return Part(kind, start, start + length, (), "" if _sum_holds(data, start, start + length) else _SUM_WRONG)


_SUM_WRONG: Final = "its checksum is wrong"


def _sum_holds(data: bytes, start: int, stop: int) -> bool:
    end = stop - _SUM_BYTES
    if not 0 <= start < end or stop > len(data):
        return False
    with memoryview(data) as view:
        return zlib.crc32(view[start:end]) == int.from_bytes(view[end:stop])


# ---------------------------------------------------------------------- description and index


def _description(data: bytes) -> tuple[_Layout, int]:
    if len(data) < _FOOTER.size:
        raise _Damaged("the file is empty" if not data else "the file ends within its first bytes")
    described_at, version = _FOOTER.unpack_from(data, len(data) - _FOOTER.size)
    end = len(data) - _FOOTER.size
    is_sound = _sum_holds(data, described_at, end)
    if version != _VERSION:
        # A flipped bit is no newer format.
        raise _Damaged(f"{UNKNOWN_VERSION} {version}, not {_VERSION}" if is_sound and version == 1 else "it is damaged")
    if not is_sound:
        raise _Damaged("its checksum is wrong, or the file was cut short")
    try:
        table = FlatTable(data[described_at : end - _SUM_BYTES])
        numbers = [table.u64(field) for field in (3, 4, 1, 2, 8, 9)]
        compression = table.u8(5)
        is_log = table.u8(6) == 1
    except (struct.error, IndexError, ValueError) as error:
        raise _Damaged(f"it can't be decoded ({error})") from error
    if compression:
        name = _COMPRESSIONS[compression] if compression < len(_COMPRESSIONS) else f"codec {compression}"
        raise _Damaged(f"{COMPRESSED} ({name}), which only SlateDB itself reads")
    filter_at, filter_len, index_at, index_len, statistics_at, statistics_len = numbers
    blocks_end = filter_at if filter_len else index_at
    if not blocks_end + filter_len == index_at <= index_at + index_len <= described_at:
        raise _Damaged("its parts lie where they can't")
    parts = (filter_at, filter_len), (index_at, index_len), (statistics_at, statistics_len)
    return _Layout(*parts, blocks_end, is_log), described_at


def _index(data: bytes, start: int, length: int) -> list[tuple[int, bytes]]:
    """Position and first key of each block."""
    if not _sum_holds(data, start, start + length):
        raise _Damaged(_SUM_WRONG)
    try:
        table = FlatTable(data[start : start + length - _SUM_BYTES])
        found = [(block.u64(0), block.bytes(1)) for block in table.tables(0)]
    except (struct.error, IndexError, ValueError) as error:
        raise _Damaged(f"it can't be decoded ({error})") from error
    places = [place for place, _ in found]
    if not places or places[0] != 0 or places != sorted(set(places)) or places[-1] >= start:
        raise _Damaged("the blocks lie where they can't")
    return found


# ---------------------------------------------------------------------- blocks


def _indexed(
    data: bytes, index: list[tuple[int, bytes]], layout: _Layout, ranges: Sequence[tuple[bytes, bytes]] | None
) -> Iterator[Part]:
    """The blocks at the positions that the index names."""
    for number, (start, first) in enumerate(index):
        stop, following = index[number + 1] if number + 1 < len(index) else (layout.blocks_end, None)
        if not _sum_holds(data, start, stop):
            yield Part("block", start, stop, (), _SUM_WRONG)
            continue
        wanted = ranges is None or layout.is_log
        # A first key in the index may be any key between the last one before it and the first one after it.
        if wanted or any(first < end and (following is None or begin <= following) for begin, end in ranges or ()):
            try:
                yield Part("block", start, stop, _block(data, start, stop))
            except (_Damaged, IndexError, struct.error) as error:
                yield Part("block", start, stop, (), f"it can't be decoded ({error})")
        else:
            yield Part("block", start, stop)


def _block(data: bytes, start: int, stop: int) -> list[SstRow]:
    """The rows of a block whose checksum holds."""
    end = stop - _SUM_BYTES - _u16.size
    count = _u16.unpack_from(data, end)[0]
    rows_end = end - count * _u16.size
    rows: list[SstRow] = []
    restarts: list[int] = []
    at, key = start, b""
    while at < rows_end:
        if len(rows) % _RESTART_ROWS == 0:
            restarts.append(at - start)
            key = b""
        row, at = _row(data, at, rows_end, key)
        key = row.key
        rows.append(row)
    if at != rows_end or tuple(restarts) != struct.unpack_from(f">{count}H", data, rows_end):
        raise _Damaged("its rows are not where its index has them")
    return rows


def _walk(data: bytes, start: int, stop: int) -> Iterator[Part]:
    """The blocks from `start` on, found without an index; what lies between two that can be read is one bad part."""
    # What is tried in vain is bounded: bytes made for it could keep this busy for hours.
    tries, at, bad_from = stop - start + 100_000, start, -1
    while 0 <= at < stop and tries > 0:
        rows, end, tried = _try_block(data, at, stop)
        if rows:
            if bad_from >= 0:
                yield Part("block", bad_from, at, (), "no block can be read here")
                bad_from = -1
            yield Part("block", at, end, rows)
            at = end
            continue
        tries -= tried
        bad_from = at if bad_from < 0 else bad_from
        # A block begins with a row that shares nothing with the one before it.
        at = data.find(b"\0", at + 1, stop)
    if bad_from >= 0 or (0 <= at < stop):
        yield Part("block", bad_from if bad_from >= 0 else at, stop, (), "no block can be read here")


def _try_block(data: bytes, start: int, stop: int) -> tuple[list[SstRow], int, int]:
    """The rows of the block at `start` and where it ends; no rows if there is none. And how many rows were tried."""
    rows: list[SstRow] = []
    restarts = b""
    at, key, count = start, b"", 0
    try:
        while at < stop and (len(rows) < 2 or at - start <= _MAX_BLOCK_BYTES):
            if len(rows) % _RESTART_ROWS == 0:
                restarts += _u16.pack((at - start) & 0xFFFF)
                key, count = b"", count + 1
            row, at = _row(data, at, stop, key)
            key = row.key
            rows.append(row)
            if data.startswith(restarts, at) and data.startswith(_u16.pack(count), at + len(restarts)):
                end = at + len(restarts) + _u16.size + _SUM_BYTES
                if end <= stop and _sum_holds(data, start, end):
                    return rows, end, 0
    except (_Damaged, IndexError, struct.error):
        pass
    return [], start, len(rows) + 1


def _row(data: bytes, at: int, stop: int, previous: bytes) -> tuple[SstRow, int]:
    """The row at `at`, and where it ends."""
    shared, at = _varint(data, at)
    unshared, at = _varint(data, at)
    size, at = _varint(data, at)
    value_at = at + unshared
    seq_at = value_at + size
    if seq_at + 9 > stop or shared > len(previous) or not shared + unshared:
        raise _Damaged("a row is longer than there is")
    flags = data[seq_at + 8]
    end = seq_at + 9 + (8 if flags & 2 else 0) + (8 if flags & 4 else 0)
    # The flags of a merge operand, which ledgerq has not, count as damage too.
    if flags > 7 or end > stop:
        raise _Damaged("a row has unknown flags")
    key = previous[:shared] + data[at:value_at] if shared else data[at:value_at]
    value = None if flags & 1 else data[value_at:seq_at]
    return SstRow(key, value, _u64.unpack_from(data, seq_at)[0]), end


def _varint(data: bytes, at: int) -> tuple[int, int]:
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    value, shift = byte & 127, 7
    while True:
        at += 1
        byte = data[at]
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at + 1
        shift += 7
        if shift > 28:
            raise _Damaged("a number is too long")
