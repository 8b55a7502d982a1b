"""The fast lane: the calls of `PublicLane` through the binding's private parts, several times faster.

The generated binding (UniFFI) copies every byte string into Rust one byte at a time in a Python loop: 66 us for a put
of 180 bytes. Here the same functions of the same shared library are called through signatures declared once, with one
memory copy per argument: under 4 us. Reads are lifted with one copy and `struct` as well.

The binding checks UniFFI's contract version and its API checksums when it is imported. `check` makes sure that every
symbol and structure used here is there and that a trial run works: else lanes.py takes the public lane, so that another
version of the binding costs speed and nothing else.
"""

import ctypes
import itertools
import struct
import threading
from collections.abc import Callable
from typing import Any, Final

from slatedb.uniffi import Db, DbIterator, DbReader, FlushOptions, FlushType, WriteHandle, WriteOptions
from slatedb.uniffi._slatedb_uniffi import slatedb as binding

from ledgerq.eventlog.slate.binding import BlockingCalls, GatheredBatch, SlateBatch, scan_options
from ledgerq.eventlog.slate.fast_rows import parse_rows
from ledgerq.eventlog.store import Row

__all__ = ["FastLane", "check", "taken"]

_DONE_CODE: Final = 0
_PREFIX: Final = "uniffi_slatedb_uniffi_fn_"
_LENGTH: Final = struct.Struct(">i")
_pack_length: Final = _LENGTH.pack


class _RustBuffer(ctypes.Structure):
    _fields_ = (("capacity", ctypes.c_uint64), ("len", ctypes.c_uint64), ("data", ctypes.c_void_p))


class _ForeignBytes(ctypes.Structure):
    # c_char_p takes the address inside a bytes object without a copy; the length goes along, so NUL bytes are safe.
    _fields_ = (("len", ctypes.c_int32), ("data", ctypes.c_char_p))


class _CallStatus(ctypes.Structure):
    _fields_ = (("code", ctypes.c_int8), ("error_buf", _RustBuffer))


class _Calls:
    """The functions of the shared library with their signatures."""

    def __init__(self) -> None:
        # PyDLL keeps the interpreter lock: each call takes far less than giving it up and getting it back, and none
        # of them blocks (those that would return a Rust future, which is then polled by the binding's own loop).
        library = ctypes.PyDLL(binding._UniffiLib._name)
        status, handle = ctypes.c_void_p, ctypes.c_uint64

        def function(name: str, result: Any, *arguments: Any) -> Any:
            found = getattr(library, name)
            found.restype, found.argtypes = result, arguments
            return found

        self.from_bytes = function("ffi_slatedb_uniffi_rustbuffer_from_bytes", _RustBuffer, _ForeignBytes, status)
        self.free_buffer = function("ffi_slatedb_uniffi_rustbuffer_free", None, _RustBuffer, status)
        self.clone_batch = function(_PREFIX + "clone_writebatch", handle, handle, status)
        method = _PREFIX + "method_"
        self.put = function(method + "writebatch_put", None, handle, _RustBuffer, _RustBuffer, status)
        self.delete = function(method + "writebatch_delete", None, handle, _RustBuffer, status)
        self.write = function(method + "db_write_with_options", handle, handle, handle, _RustBuffer)
        self.flush = function(method + "db_flush_with_options", handle, handle, _RustBuffer)
        self.next_batch = function(method + "dbiterator_next_batch", handle, handle, ctypes.c_uint32)
        self.get = {
            kind: function(f"{method}{kind.__name__.lower()}_get", handle, handle, _RustBuffer)
            for kind in (Db, DbReader)
        }
        self.scan = {
            kind: function(
                f"{method}{kind.__name__.lower()}_scan_with_options", handle, handle, _RustBuffer, _RustBuffer
            )
            for kind in (Db, DbReader)
        }
        futures = "ffi_slatedb_uniffi_rust_future_"
        own = binding._UniffiLib
        self.as_void, self.as_handle, self.as_buffer = (
            tuple(getattr(own, f"{futures}{step}_{kind}") for step in ("poll", "complete", "free"))
            for kind in ("void", "u64", "rust_buffer")
        )


class FastLane:
    """The lane through the binding's private parts; `check` it before it is used."""

    def __init__(self) -> None:
        """Bind the functions; raises errors of any type when a part is missing."""
        self._calls = _Calls()
        self._write_options = _encoded(binding._UniffiFfiConverterTypeWriteOptions, WriteOptions())
        self._flush_wal = _encoded(binding._UniffiFfiConverterTypeFlushOptions, FlushOptions(flush_type=FlushType.WAL))
        self._scan_options = {
            reverse: _encoded(binding._UniffiFfiConverterTypeScanOptions, scan_options(reverse=reverse))
            for reverse in (False, True)
        }
        self._parse: Callable[[bytes], list[Row]] = parse_rows
        self._error = binding._UniffiFfiConverterTypeError
        self._lift_handle = binding._UniffiFfiConverterTypeWriteHandle.lift
        self._lift_rows = binding._UniffiFfiConverterTypeDbIterator.lift

    def batch(self) -> SlateBatch:
        """A new, empty batch."""
        return GatheredBatch()

    async def write(self, db: Db, batch: SlateBatch) -> WriteHandle:
        """Apply a batch; it may not be durable yet."""
        self._hand_over(batch)
        future = self._calls.write(
            db._uniffi_clone_handle(), batch.raw._uniffi_clone_handle(), self._buffer(self._write_options)
        )
        return await self._finish(future, self._calls.as_handle, self._lift_handle)

    async def flush_wal(self, db: Db) -> None:
        """Make everything that was written durable in the write-ahead log."""
        future = self._calls.flush(db._uniffi_clone_handle(), self._buffer(self._flush_wal))
        await self._finish(future, self._calls.as_void, _nothing)

    @property
    def blocking(self) -> BlockingCalls:
        """The lane itself."""
        return self

    def write_blocking(self, db: Db, batch: SlateBatch, limit_s: float) -> None:
        """Apply a batch, driven by the calling thread."""
        if not batch.is_empty:
            self._hand_over(batch)
            written = self._calls.write(
                db._uniffi_clone_handle(), batch.raw._uniffi_clone_handle(), self._buffer(self._write_options)
            )
            self._drive(written, self._calls.as_handle, self._lift_handle, limit_s)

    def flush_wal_blocking(self, db: Db, limit_s: float) -> None:
        """Make everything that was written durable in the write-ahead log, driven by the calling thread."""
        flushed = self._calls.flush(db._uniffi_clone_handle(), self._buffer(self._flush_wal))
        self._drive(flushed, self._calls.as_void, _nothing, limit_s)

    def _hand_over(self, batch: SlateBatch) -> None:
        """Put the rows that a batch has gathered into the write batch of SlateDB."""
        calls, handle, status = self._calls, batch.raw._handle, _CallStatus()
        # One set of argument structures for all rows, so that a row allocates none.
        key_at, value_at, status_at = _ForeignBytes(), _ForeignBytes(), ctypes.addressof(status)
        clone, from_bytes, put, delete = calls.clone_batch, calls.from_bytes, calls.put, calls.delete
        for key, value in taken(batch).items():
            # The argument is what the binding's own converter would write: a 4-byte big-endian length, then the bytes.
            key_bytes = _pack_length(len(key)) + key
            key_at.len, key_at.data = len(key_bytes), key_bytes
            if value is None:
                delete(clone(handle, status_at), from_bytes(key_at, status_at), status_at)
            else:
                value_bytes = _pack_length(len(value)) + value
                value_at.len, value_at.data = len(value_bytes), value_bytes
                put(clone(handle, status_at), from_bytes(key_at, status_at), from_bytes(value_at, status_at), status_at)
            if status.code:
                # Lifting the error frees its buffer.
                binding._uniffi_check_call_status(self._error, binding._UniffiRustCallStatus.from_buffer_copy(status))

    def _drive(self, future: int, steps: Any, lift: Any, limit_s: float) -> None:
        """Poll a Rust future to its end, waiting for its wake-ups on a lock."""
        poll, complete, free = steps
        number, turn = next(_turn_numbers), _Turn()
        _turns[number] = turn
        try:
            while True:
                poll(future, _turned, number)
                if not turn.happened.acquire(timeout=limit_s):
                    raise TimeoutError
                if turn.code == _DONE_CODE:
                    break
            lift(binding._uniffi_rust_call_with_error(self._error, complete, future))
        finally:
            free(future)
            del _turns[number]

    async def get(self, db: Db | DbReader, key: bytes) -> bytes | None:
        """The value of `key`, or None."""
        future = self._calls.get[type(db)](db._uniffi_clone_handle(), self._buffer(_pack_length(len(key)) + key))
        found: bytes | None = await self._finish(future, self._calls.as_buffer, self._lift_optional)
        return found

    async def scan(self, db: Db | DbReader, start: bytes, stop: bytes, *, reverse: bool) -> DbIterator:
        """An iterator over `start <= key < stop`."""
        first = b"\1" + _pack_length(len(start)) + start if start else b"\0"
        # Each bound is an optional byte string and a flag: the start belongs to the range, the end doesn't.
        key_range = b"%b\1\1%b%b\0" % (first, _pack_length(len(stop)), stop)
        future = self._calls.scan[type(db)](
            db._uniffi_clone_handle(), self._buffer(key_range), self._buffer(self._scan_options[reverse])
        )
        return await self._finish(future, self._calls.as_handle, self._lift_rows)

    async def next_rows(self, rows: DbIterator, limit: int, limit_s: float) -> list[Row]:
        """Up to `limit` further rows; fewer mean that there are no more."""
        future = self._calls.next_batch(rows._uniffi_clone_handle(), limit)
        found: list[Row] = await self._finish(future, self._calls.as_buffer, self._lift_key_values)
        return found

    async def _finish(self, future: int, steps: Any, lift: Any) -> Any:
        return await binding._uniffi_rust_call_async(future, *steps, lift, self._error)

    def _buffer(self, value: bytes) -> _RustBuffer:
        status = _CallStatus()
        buffer: _RustBuffer = self._calls.from_bytes(_ForeignBytes(len(value), value), ctypes.addressof(status))
        if status.code:
            raise binding.InternalError("SlateDB could not take a buffer")
        return buffer

    def _lift_optional(self, buffer: Any) -> bytes | None:
        data = _taken(buffer)
        return data[5:] if data[0] else None

    def _lift_key_values(self, buffer: Any) -> list[Row]:
        return self._parse(_taken(buffer))


class _Turn:
    """The lock on which a thread waits until its Rust future can go on."""

    def __init__(self) -> None:
        self.happened = threading.Lock()
        self.happened.acquire()
        self.code = 0


_turns: Final[dict[int, _Turn]] = {}
_turn_numbers: Final = itertools.count()


@binding._UNIFFI_RUST_FUTURE_CONTINUATION_CALLBACK  # type: ignore[untyped-decorator]
def _turned(number: int, code: int) -> None:
    """Called by Rust, from any of its threads, when a future that was polled can go on."""
    turn = _turns.get(number)
    if turn is not None:  # its thread may have given up
        turn.code = code
        turn.happened.release()


def _taken(buffer: Any) -> bytes:
    """Copy what a buffer of Rust holds, and free it."""
    try:
        return ctypes.string_at(buffer.data, buffer.len)
    finally:
        buffer.free()


def taken(batch: SlateBatch) -> dict[bytes, bytes | None]:
    """The rows that a batch has gathered; one of the public lane has put its own."""
    return batch.take() if isinstance(batch, GatheredBatch) else {}


def _encoded(converter: Any, value: Any) -> bytes:
    return _taken(converter.lower(value))


def _nothing(_: object) -> None:
    return None


def check(lane: FastLane) -> None:
    """Refuse a binding whose structures differ: a wrong size here would be memory corruption later."""
    for ours, theirs in ((_RustBuffer, binding._UniffiRustBuffer), (_CallStatus, binding._UniffiRustCallStatus)):
        if ctypes.sizeof(ours) != ctypes.sizeof(theirs) or [name for name, _ in ours._fields_] != [
            name for name, _ in theirs._fields_
        ]:
            raise TypeError(f"{theirs.__name__} is not laid out as expected")
    row = binding.KeyValue(key=b"k\0", value=b"", seq=2**63, create_ts=-1, expire_ts=7)
    plain = binding.KeyValue(key=b"\xff", value=b"v" * 300, seq=0, create_ts=1, expire_ts=None)
    converter = binding._UniffiFfiConverterSequenceTypeKeyValue
    if lane._parse(_encoded(converter, [row, plain])) != [(row.key, row.value), (plain.key, plain.value)]:
        raise TypeError("rows are not laid out as expected")
    batch = lane.batch()
    batch.put(b"key", b"a\0value")
    batch.delete(b"other key")
    lane._hand_over(batch)
