"""The store on SlateDB, opened for writing: batches, explicit flushes, and what a file system needs besides.

opening.py is the way in. Reading is in `reads.py`, a reader for other processes in `slate_reader.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from slatedb.uniffi import CloseOptions, CloseReason, Db, FlushType

from ledgerq.eventlog.anchor import ObjectAnchor
from ledgerq.eventlog.clock import Clock, stopwatch_s
from ledgerq.eventlog.errors import (
    ClockWentBack,
    Fenced,
    InvalidArgument,
    LedgerError,
    LogPoisoned,
    OutcomeUnknown,
    QueueClosed,
    StoreUnavailable,
)
from ledgerq.eventlog.files.fsync import FileSync
from ledgerq.eventlog.files.upkeep import Upkeep
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.set_aside import mark_recorded, read_set_aside
from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.meters import CommitTimes
from ledgerq.eventlog.runtime.threads import DaemonThreads
from ledgerq.eventlog.runtime.waits import while_synced
from ledgerq.eventlog.single_writer.hold import Hold
from ledgerq.eventlog.slate.binding import Lane, SlateBatch
from ledgerq.eventlog.slate.error_mapping import SLATE_ERRORS, closed_error, late_error, translate
from ledgerq.eventlog.slate.fencing import FenceCheck
from ledgerq.eventlog.slate.memtable import MemtableFlush
from ledgerq.eventlog.slate.metrics import SlateMetrics
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.preflight import CAUSE_LIMIT_S, full_disk, with_cause
from ledgerq.eventlog.slate.reads import SlateReads
from ledgerq.eventlog.slate.turns import CommitTurns
from ledgerq.eventlog.store import Anchor, Batch

__all__ = ["SlateStore"]

_log = logger("store")
_T = TypeVar("_T")
_ANCHOR_LIMIT_S: Final = 10.0


class SlateStore(SlateReads):
    """A SlateDB database opened for writing; open it with `open_slate`. Reads see what was written, durable or not."""

    def __init__(
        self,
        db: Db,
        lane: Lane,
        location: Location,
        clock: Clock,
        options: StoreOptions,
        metrics: SlateMetrics,
    ) -> None:
        """Own the open `db`, which counts for `metrics`; `started` must follow."""
        super().__init__(db, lane, location, read_timeout_s=options.read_timeout_s)
        self.metrics = metrics
        self._clock = clock
        self._options = options
        self._fsync = options.fsync
        self.hold: Hold | None = None
        self.fence: FenceCheck | None = None
        self._threads = DaemonThreads("ledgerq-sync")
        self._turns = CommitTurns()
        self._files = FileSync(location.folder, fsync=options.fsync) if location.is_file else None
        self._upkeep: Upkeep | None = None
        self._anchor: ObjectAnchor | None = None
        self._objects: Objects | None = None
        if not location.is_file:
            self._objects = Objects(location, limit_s=min(CAUSE_LIMIT_S, options.commit_timeout_s))
            self._anchor = ObjectAnchor(Objects(location, limit_s=_ANCHOR_LIMIT_S), clock)
        self._broken: LedgerError | None = None
        self._refused: ClockWentBack | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None
        limit = options.max_wal_flushes_before_l0_flush or (1000 if location.is_file else 128)
        self._memtable = MemtableFlush(db, location, every_wal_flushes=limit)

    async def started(self) -> None:
        """Make durable what an earlier writer left, and begin the upkeep.

        However much that is: it may take any time as long as the disk gets on. Raises `StoreUnavailable` when it does
        not within `open_timeout_s`, OSError and SlateDB's errors.
        """
        if self._files is None:
            return
        if not self._options.fsync:
            await self._in_thread(self._files.opened)
            return
        options = self._options
        self._upkeep = Upkeep(self._location, self._files, self._in_thread)
        files, limit_s = self._files, options.open_timeout_s
        await while_synced(self._upkeep.opened(), lambda: files.steps, limit_s=limit_s, location=self.location)
        self._spawn(
            self._upkeep.keep_up(
                self._clock,
                gc_interval_s=options.gc_interval_s,
                gc_age_s=options.gc_age_s,
                has_stopped=lambda: self.failure() is not None,
            )
        )

    def held(self, hold: Hold) -> None:
        """Own `hold`: it is released when this closes, and not while a hung disk may still write the anchor."""
        self.hold = hold
        if self._files is not None:
            files = self._files
            hold.ends_with(lambda: files.close(wait=False))

    @property
    def is_fenced(self) -> bool:
        """Whether SlateDB has noticed that another writer opened the store, or takes a refused write for that."""
        return bool(self._db.status().close_reason == CloseReason.FENCED)

    def batch(self) -> Batch:
        """A new, empty batch; it can be written once."""
        self._check()
        return self._lane.batch()

    async def write(self, batch: Batch) -> None:
        """Apply `batch` atomically after those written before; it may not be durable yet.

        Raises `Fenced`, `ClockWentBack` (nothing was written, try later), `StoreUnavailable`, `OutcomeUnknown`.
        """
        self._check_writable()
        if not isinstance(batch, SlateBatch):
            raise InvalidArgument(f"a batch of this store is needed, not {type(batch).__name__}")
        if batch.is_empty:
            return
        async with self._failures("a write"):
            async with asyncio.timeout(self._options.commit_timeout_s):
                await self._lane.write(self._db, batch)

    async def sync(self, anchor: Anchor) -> None:
        """Wait until every batch written before this call is durable; a file store has written `anchor` then.

        Raises like `write`; after an error it is unknown which of those batches are durable.
        """
        self._check_writable()
        async with self._failures("a commit"):
            async with asyncio.timeout(self._options.commit_timeout_s):
                await self._lane.flush_wal(self._db)
                if self._files is not None:
                    await self._in_thread(self._sync_files, self._files, anchor)
        self._record_anchor(anchor)

    async def commit(self, batch: Batch, anchor: Anchor) -> CommitTimes:
        """`write` and `sync` in one. Calls may overlap: they are written in the order of the calls.

        When one fails, those called after it fail as well; when it was refused, none of them is written.
        """
        blocking = self._lane.blocking
        if blocking is None:
            return await self._commit_by_tasks(batch, anchor)
        self._check_writable()
        if not isinstance(batch, SlateBatch):
            raise InvalidArgument(f"a batch of this store is needed, not {type(batch).__name__}")
        turn, others = self._turns.take()
        limit_s = self._options.commit_timeout_s
        write = partial(blocking.write_blocking, self._db, batch, limit_s)
        try:
            async with self._failures("a commit"):
                # Each of those before it has the limit for itself.
                limit_s *= 1 + others
                async with asyncio.timeout(limit_s):
                    run = self._turns.run
                    times = await self._in_thread(run, turn, anchor, write, self._flush_blocking, limit_s)
        finally:
            self._turns.given_back()
        self._record_anchor(anchor)
        return times

    async def _commit_by_tasks(self, batch: Batch, anchor: Anchor) -> CommitTimes:
        async with self._turns.one_by_one():
            begun_s = stopwatch_s()
            with self._turns.writing():
                await self.write(batch)
            written_s = stopwatch_s()
            await self.sync(anchor)
            return CommitTimes(written_s - begun_s, stopwatch_s() - written_s, None)

    def _flush_blocking(self, anchor: Anchor) -> float | None:
        """Called in a thread; a method of the store: it, and with it the hold, is not dropped while a thread hangs."""
        blocking = self._lane.blocking
        assert blocking is not None
        blocking.flush_wal_blocking(self._db, self._options.commit_timeout_s)
        if self._files is None:
            return None
        begun_s = stopwatch_s()
        self._files.commit(anchor)
        return stopwatch_s() - begun_s

    @asynccontextmanager
    async def _failures(self, what: str) -> AsyncIterator[None]:
        """Turn what the store and the disk raise into our errors, and remember those after which nothing is known."""
        try:
            yield
        except TimeoutError as error:
            late = late_error(self.location, what, self._options.commit_timeout_s, await full_disk(self._location))
            raise await self._explained(late) from error
        except SLATE_ERRORS as error:
            raise await self._explained(translate(error, self.location)) from error
        except OSError as error:
            # After a failed fsync the kernel may have dropped the data, so another fsync would prove nothing.
            unknown = OutcomeUnknown(
                f"{self.location}: syncing to the disk failed ({error}), so the last commit may or may not be in the "
                "log; check the disk, then open it again to learn which"
            )
            raise self._broke(unknown) from error

    async def _explained(self, error: LedgerError) -> LedgerError:
        error = await self._judged(error)
        self._broke(error)
        return error if self._objects is None else await with_cause(error, self._objects)

    async def _judged(self, error: LedgerError) -> LedgerError:
        return await self.fence.judge(error) if self.fence is not None and isinstance(error, Fenced) else error

    async def _failed(self, error: BaseException) -> LedgerError:
        return await self._judged(await super()._failed(error))

    def _record_anchor(self, anchor: Anchor) -> None:
        self._refused = None
        if self._anchor is not None:
            self._anchor.record(anchor)
        if (flush := self._memtable.due()) is not None:
            self._spawn(flush)

    def failure(self) -> LedgerError | None:
        """Why the store no longer takes writes, as far as it has noticed by itself; else None."""
        if self._broken is not None:
            return self._broken
        if self._is_closed:
            return QueueClosed(f"{self.location} was closed; open it again")
        self._check()
        reason = self._db.status().close_reason
        error = None if reason is None else closed_error(reason, self.location)
        return self.fence.judged(error) if self.fence is not None and isinstance(error, Fenced) else error

    async def read_anchor(self) -> Anchor | None:
        """The newest anchor that can be read, or None when there is none."""
        self._check()
        if self._anchor is not None:
            return await self._anchor.read()
        if self._files is None:
            return None
        try:
            return await self._in_thread(self._files.anchor.read)
        except OSError as error:
            raise StoreUnavailable(f"{self.location}: its anchor can't be read: {error}") from error

    async def set_aside(self) -> list[tuple[str, list[str]]]:
        """Files that were set aside and that no event records yet: for each time the folder and the files' names."""
        if self._files is None:
            return []
        found = await self._in_thread(read_set_aside, self._location.folder)
        return [(moved.folder, list(moved.files)) for moved in found if not moved.is_recorded and moved.files]

    async def set_aside_recorded(self, folder: str) -> None:
        """Called when the event of the files in `folder` is durable."""
        if self._files is not None:
            await self._in_thread(mark_recorded, self._location.folder, folder)

    async def close(self) -> None:
        """Flush and release the hold; a second call does nothing. Takes at most `commit_timeout_s` per step."""
        if self._closing is None:
            self._check()
            self._closing = asyncio.create_task(self._close())
        # The work goes on when the caller is cancelled: half a close would leave threads and a fence behind.
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(self._options.commit_timeout_s):
                # What is in sorted files need not be replayed by the next opener.
                flush = None if self._broken is not None else FlushType.MEM_TABLE
                await self._db.shutdown_with_options(CloseOptions(flush_type=flush))
                if self._upkeep is not None:
                    await self._upkeep.sync()
                if self._anchor is not None:
                    await self._anchor.close(write_last=self._broken is None)
        except (TimeoutError, OSError, *SLATE_ERRORS) as error:
            # Nothing acknowledged depends on it: an acknowledged commit was durable before.
            if not isinstance(self._broken, Fenced) and self._refused is None:
                _log.warning("%s: closing did not finish: %r", self.location, error, extra=about("close_unfinished"))
        finally:
            await self._release()

    async def _release(self) -> None:
        hold = self.hold
        try:
            if self._files is not None:
                closing = self._threads.submit(self._files.close)
                async with asyncio.timeout(self._options.commit_timeout_s):
                    await asyncio.wrap_future(closing)
        except TimeoutError:
            what = "%s: the disk hangs, so a thread and two files stay open, and the store held, until it answers"
            _log.warning(what, self.location, extra=about("close_unfinished"))
            if hold is not None:
                # A commit that hangs there would still write its anchor, over that of the next writer.
                hold.keep_until(closing)
        finally:
            self._threads.shutdown()
            if self.fence is not None:
                await self.fence.close()
            if hold is not None:
                await hold.release()

    def _sync_files(self, files: FileSync, anchor: Anchor) -> None:
        """A method of the store: it, and with it the hold, is not dropped while a thread hangs in here."""
        files.commit(anchor)

    def _in_thread(self, function: Callable[..., _T], *arguments: object) -> asyncio.Future[_T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _check_writable(self) -> None:
        self._check()
        if isinstance(self._broken, Fenced):
            raise Fenced(*self._broken.args)
        if self._broken is not None:
            raise LogPoisoned(f"{self.location} takes no more writes since one failed ({self._broken}); open it again")

    def _broke(self, error: LedgerError) -> LedgerError:
        # The clock catches up, and a refused argument wrote nothing; after anything else the outcome is unknown.
        if isinstance(error, ClockWentBack):
            self._refused = error
        elif not isinstance(error, InvalidArgument) and self._broken is None:
            self._broken = error
        return error
