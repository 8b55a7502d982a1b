"""The native lane: the fast lane, whose commits and large reads are done by the compiled module `_rows`.

A write, and a flush, gives up the interpreter lock once, where the fast lane holds it for each row, and takes it again
whenever SlateDB wakes a future. A page of a scan is read in a thread, where the fast lane lets SlateDB search for its
rows on the event loop's own thread. `_rows` is optional: a machine without a compiler installs ledgerq without it, and
lanes.py takes the fast lane.
"""

import asyncio
import ctypes
import struct
from functools import partial
from typing import Final

from slatedb.uniffi import Db, DbIterator
from slatedb.uniffi._slatedb_uniffi import slatedb as binding

from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.slate.binding import SlateBatch
from ledgerq.eventlog.slate.fast_binding import FastLane, taken
from ledgerq.eventlog.slate.row_sums import RowSum
from ledgerq.eventlog.store import Row

try:
    from ledgerq.eventlog.slate import _rows  # type: ignore[attr-defined]
except ImportError:
    _rows = None

__all__ = ["NativeLane", "is_built"]

_METHOD: Final = "uniffi_slatedb_uniffi_fn_method_"
_FUNCTION: Final = "uniffi_slatedb_uniffi_fn_"
_FUTURE: Final = "ffi_slatedb_uniffi_rust_future_"
_LONGEST_S: Final = 1e6
# Below that the way to a thread and back costs more than the rows.
_THREAD_FROM_ROWS: Final = 200


def is_built() -> bool:
    """Whether the compiled module is there."""
    return _rows is not None


class NativeLane(FastLane):
    """The lane with compiled commits and reads; `fast_binding.check` it before it is used."""

    def __init__(self) -> None:
        """Check and bind the functions; raises errors of any type when a part is missing or differs."""
        super().__init__()
        sizes = ctypes.sizeof(binding._UniffiRustBuffer), ctypes.sizeof(binding._UniffiRustCallStatus)
        if sizes != (_rows.BUFFER_BYTES, _rows.STATUS_BYTES):
            raise TypeError("the binding's structures are not laid out as expected")
        addresses = [_address(*one) for one in _functions()]
        _rows.bind(struct.pack(f"={len(addresses)}Q", *addresses))
        self._parse = _rows.parse
        self._threads = DaemonThreads("ledgerq-read")

    def write_blocking(self, db: Db, batch: SlateBatch, limit_s: float) -> None:
        """Like that of the fast lane, in one call that holds the interpreter lock only at its begin and end."""
        if not batch.is_empty:
            status = binding._UniffiRustCallStatus.default()
            _rows.write(
                db._handle,
                batch.raw._handle,
                taken(batch),
                self._write_options,
                _limit_us(limit_s),
                ctypes.addressof(status),
            )
            binding._uniffi_check_call_status(self._error, status)

    def flush_wal_blocking(self, db: Db, limit_s: float) -> None:
        """Like that of the fast lane, in one call that holds the interpreter lock only at its begin and end."""
        status = binding._UniffiRustCallStatus.default()
        _rows.flush(db._handle, self._flush_wal, _limit_us(limit_s), ctypes.addressof(status))
        binding._uniffi_check_call_status(self._error, status)

    async def next_rows(self, rows: DbIterator, limit: int, limit_s: float) -> list[Row]:
        """Like that of the fast lane; a large page is read in a thread, mostly without the interpreter lock."""
        if limit < _THREAD_FROM_ROWS:
            return await super().next_rows(rows, limit, limit_s)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._next_rows, rows, limit, limit_s)

    def _next_rows(self, rows: DbIterator, limit: int, limit_s: float) -> list[Row]:
        status = binding._UniffiRustCallStatus.default()
        found: list[Row] = _rows.next_rows(rows._handle, limit, _limit_us(limit_s), ctypes.addressof(status))
        binding._uniffi_check_call_status(self._error, status)
        return found

    async def next_sum(self, rows: DbIterator, limit: int, secret: bytes, limit_s: float) -> RowSum:
        """The sum of up to `limit` further rows, read and added up without the interpreter lock."""
        call = partial(self._next_sum, rows, limit, secret, limit_s)
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    def _next_sum(self, rows: DbIterator, limit: int, secret: bytes, limit_s: float) -> RowSum:
        status = binding._UniffiRustCallStatus.default()
        found = _rows.next_sum(rows._handle, limit, _limit_us(limit_s), secret, ctypes.addressof(status))
        binding._uniffi_check_call_status(self._error, status)
        return RowSum(*found)

    def _hand_over(self, batch: SlateBatch) -> None:
        status = binding._UniffiRustCallStatus.default()
        _rows.put(batch.raw._handle, taken(batch), ctypes.addressof(status))
        binding._uniffi_check_call_status(self._error, status)


def _limit_us(limit_s: float) -> int:
    return int(min(limit_s, _LONGEST_S) * 1e6)


def _functions() -> list[tuple[str, object, tuple[object, ...]]]:
    """Name, result and arguments of each function that `_rows` calls, in the order of its structure `rust`."""
    handle, number, buffer = ctypes.c_uint64, ctypes.c_uint64, binding._UniffiRustBuffer
    status = ctypes.POINTER(binding._UniffiRustCallStatus)
    poll = (handle, binding._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK, number)
    return [
        ("ffi_slatedb_uniffi_rustbuffer_alloc", buffer, (number, status)),
        (_FUNCTION + "clone_db", handle, (handle, status)),
        (_FUNCTION + "clone_writebatch", handle, (handle, status)),
        (_METHOD + "writebatch_put", None, (handle, buffer, buffer, status)),
        (_METHOD + "writebatch_delete", None, (handle, buffer, status)),
        (_METHOD + "db_write_with_options", handle, (handle, handle, buffer)),
        (_FUTURE + "poll_u64", None, poll),
        (_FUTURE + "complete_u64", number, (handle, status)),
        (_FUTURE + "free_u64", None, (handle,)),
        (_FUNCTION + "free_writehandle", None, (handle, status)),
        (_METHOD + "db_flush_with_options", handle, (handle, buffer)),
        (_FUTURE + "poll_void", None, poll),
        (_FUTURE + "complete_void", None, (handle, status)),
        (_FUTURE + "free_void", None, (handle,)),
        (_FUNCTION + "clone_dbiterator", handle, (handle, status)),
        (_METHOD + "dbiterator_next_batch", handle, (handle, ctypes.c_uint32)),
        (_FUTURE + "poll_rust_buffer", None, poll),
        (_FUTURE + "complete_rust_buffer", buffer, (handle, status)),
        (_FUTURE + "free_rust_buffer", None, (handle,)),
        ("ffi_slatedb_uniffi_rustbuffer_free", None, (buffer, status)),
    ]


def _address(name: str, result: object, arguments: tuple[object, ...]) -> int:
    """Where a function is; raises TypeError when the binding declares it otherwise."""
    function = getattr(binding._UniffiLib, name)
    if (function.restype, tuple(function.argtypes)) != (result, arguments):
        raise TypeError(f"{name} is not declared as expected")
    return ctypes.cast(function, ctypes.c_void_p).value or 0
