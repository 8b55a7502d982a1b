"""Large payloads: they are streamed to blobs before their jobs are enqueued, and deleted once these are gone.

What has no job is deleted when the store is opened, and daily from then on where there are any: the payload of an
enqueue call that never ended, or of a job whose payload could not be deleted.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Coroutine
from typing import Any, Final, Protocol

from ledgerq.eventlog.blobs import PIECE_BYTES, Blob, BlobName, encode_blob, keyed
from ledgerq.eventlog.clock import Timer
from ledgerq.eventlog.entropy import Entropy, job_id_bytes, new_job_id
from ledgerq.eventlog.errors import InvalidArgument, LedgerError
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.side_records import SALT_BYTES
from ledgerq.worker.engine.new_job import StoredPayload
from ledgerq.worker.engine.writer_state import WriterState

__all__ = ["LargePayloads", "Readable", "Stream", "is_stream"]

_log = logger("queue")
_ORPHAN_AGE_MS: Final = 3_600_000
_LOOK_AGAIN_MS: Final = 24 * 3_600_000
_LOOK_UP: Final = 200


class Readable(Protocol):
    """A file of bytes, or an object with such a `read`."""

    def read(self, size: int, /) -> Any:
        """Up to `size` bytes, none at the end; may be a coroutine."""


Stream = AsyncIterable[bytes] | Readable
"""A payload that is read in pieces."""


def is_stream(payload: object) -> bool:
    """Whether this is read in pieces: a file, or an async iterator of bytes."""
    return hasattr(payload, "__aiter__") or callable(getattr(payload, "read", None))


class LargePayloads:
    """The large payloads of one queue object."""

    def __init__(self, writer_state: WriterState, *, entropy: Entropy) -> None:
        self._writer_state = writer_state
        self._entropy = entropy
        self._under_way: set[BlobName] = set()
        self._has_any = False
        self._timer: Timer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------ to be enqueued

    async def store(self, payload: Any, job_id: str | None) -> tuple[bytes, StoredPayload | None]:
        """Write a payload of the job with this id (None: a new one); one that is small is given as bytes instead.

        Then `end` must follow, when the job's event is durable or will never be.
        """
        job = None if job_id is None else job_id_bytes(job_id)
        pieces = _even(_pieces(payload))
        first = await anext(pieces, b"")
        if len(first) < PIECE_BYTES:
            return first, None
        log = self._writer_state.log
        now_ms = log.clock.now_ms()
        job = new_job_id(now_ms, self._entropy) if job is None else job
        name, salt = BlobName(new_job_id(now_ms, self._entropy), job), self._entropy.take(SALT_BYTES)
        digest, size_bytes = keyed(salt), 0

        async def all_pieces() -> AsyncIterator[bytes]:
            nonlocal size_bytes
            piece = first
            while piece:
                log.check()
                digest.update(piece)
                size_bytes += len(piece)
                yield piece
                piece = await anext(pieces, b"")

        self._under_way.add(name)
        try:
            await log.store.blobs.put(str(name), all_pieces())
        except BaseException:
            self._under_way.discard(name)
            raise
        self._look_daily()
        return b"", StoredPayload(name, salt, encode_blob(Blob(name.id, size_bytes, digest.digest())))

    def end(self, stored: StoredPayload, *, is_wanted: bool) -> None:
        """Let go of what `store` wrote; it is deleted unless its job has it, or may have it."""
        self._under_way.discard(stored.name)
        if not is_wanted:
            self._spawn(self._delete([stored.name]))

    # ------------------------------------------------------------------ jobs that are gone

    def delete_gone(self) -> None:
        """Delete the payloads of jobs that are gone, durably."""
        gone, end = self._writer_state.gone_blobs, self._writer_state.log.durable_head.next_offset
        names: list[BlobName] = []
        while gone and gone[0][0] < end:
            names.append(gone.popleft()[1])
        if names:
            self._spawn(self._delete(names))

    async def _delete(self, names: list[BlobName]) -> None:
        """One that can't be deleted now is an orphan later."""
        try:
            for name in names:
                await self._writer_state.log.store.blobs.delete(str(name))
        except LedgerError as error:
            _log.warning("a payload could not be deleted: %s", error, extra=about("payload_left"))

    # ------------------------------------------------------------------ orphans

    def start(self) -> None:
        """Look for orphans, behind what opened the queue."""
        self._spawn(self._look())

    def _look_daily(self) -> None:
        self._has_any = True
        if self._timer is None:
            clock = self._writer_state.log.clock
            self._timer = clock.call_at(clock.now_ms() + _LOOK_AGAIN_MS, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._spawn(self._look())

    async def _look(self) -> None:
        log = self._writer_state.log
        try:
            listed = await log.store.blobs.names()
            if listed:
                self._look_daily()
            for at in range(0, len(listed), _LOOK_UP):
                await self._delete_orphans([*map(_parsed, listed[at : at + _LOOK_UP])])
        except LedgerError as error:
            if log.failure is None:
                _log.warning("orphans could not be looked for: %s", error, extra=about("payload_left"))

    async def _delete_orphans(self, some: list[tuple[str, BlobName | None]]) -> None:
        log = self._writer_state.log
        old_ms = log.clock.now_ms() - _ORPHAN_AGE_MS
        old = [(text, name) for text, name in some if name is not None and name.since_ms < old_ms]
        jobs = await self._writer_state.jobs([name.job for _, name in old])
        # A job may be gone by an event that is not durable yet, or never will be.
        await log.committed()
        for (text, name), job in zip(old, jobs, strict=True):
            blob = None if job is None else job.blob
            log.check()  # a writer that was fenced knows nothing of the jobs of the next one
            if name not in self._under_way and (blob is None or blob.id != name.id or text != str(name)):
                await log.store.blobs.delete(text)

    # ------------------------------------------------------------------ tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="ledgerq-payloads")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End what is under way; what it leaves is looked for at the next opening."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _parsed(text: str) -> tuple[str, BlobName | None]:
    return text, BlobName.parse(text)


async def _pieces(payload: Any) -> AsyncIterator[Any]:
    if hasattr(payload, "__aiter__"):
        async for piece in payload:
            yield piece
        return
    while True:
        read = payload.read
        if asyncio.iscoroutinefunction(read):
            piece = await read(PIECE_BYTES)
        else:
            piece = await asyncio.to_thread(read, PIECE_BYTES)
        if not piece:
            return
        yield piece


async def _even(pieces: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The same bytes in pieces of `PIECE_BYTES`, the last one shorter; none is empty."""
    held = bytearray()
    async for piece in pieces:
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise InvalidArgument(f"a payload is read as bytes, not as {type(piece).__name__}: open files with 'rb'")
        for at in range(0, len(piece), PIECE_BYTES):
            held += piece[at : at + PIECE_BYTES]
            while len(held) >= PIECE_BYTES:
                yield bytes(held[:PIECE_BYTES])
                del held[:PIECE_BYTES]
    if held:
        yield bytes(held)
