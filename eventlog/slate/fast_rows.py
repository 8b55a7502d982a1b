"""A parser of the binding's serialized rows, in one go: the generated reader takes several steps for each field."""

import struct
from typing import Final

from slatedb.uniffi import InternalError

from ledgerq.eventlog.store import Row

__all__ = ["parse_rows"]

_unpack_length: Final = struct.Struct(">i").unpack_from


def parse_rows(data: bytes) -> list[Row]:
    """The keys and values in a serialized sequence of the binding's `KeyValue`."""
    rows: list[Row] = []
    add, length = rows.append, _unpack_length
    at = 4
    for _ in range(length(data)[0]):
        key_at = at + 4
        at = key_at + length(data, at)[0]
        value_at = at + 4
        end = value_at + length(data, at)[0]
        add((data[key_at:at], data[value_at:end]))
        # Sequence number and creation time, 8 bytes each, then the expiry time as an optional one.
        at = end + (25 if data[end + 16] else 17)
    if at != len(data):
        raise InternalError("rows of SlateDB are not laid out as expected")
    return rows
