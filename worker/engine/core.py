"""The core of a queue, which puts its parts together: log, writer state, dispatcher, admission, maintenance.

`Queue` (queue.py) is its public face; here the parts are opened and closed.
"""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeVar

from ledgerq.eventlog.clock import Clock, SystemClock
from ledgerq.eventlog.entropy import Entropy, SystemEntropy
from ledgerq.eventlog.errors import (
    ClaimLost,
    DuplicateJobId,
    EffectConflict,
    InvalidArgument,
    InvalidState,
    JobNotFound,
    LedgerError,
    LogCorrupt,
    QueueClosed,
    UniqueKeyHeld,
)
from ledgerq.eventlog.events import STATES, State, WriterClosed
from ledgerq.eventlog.keys import queue_name_bytes
from ledgerq.eventlog.runtime.process import package_version
from ledgerq.eventlog.single_writer.hold import check_wait
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.store import Store
from ledgerq.eventlog.stores import open_store
from ledgerq.eventlog.writer import EventLog
from ledgerq.projections.job import FINISHED, Job
from ledgerq.projections.runner import Projection, ProjectionHost
from ledgerq.projections.view import LedgerView
from ledgerq.worker.engine.admission import Admission
from ledgerq.worker.engine.core_options import checked_options, pace_of
from ledgerq.worker.engine.dispatcher import Dispatcher
from ledgerq.worker.engine.end_waits import EndWaits
from ledgerq.worker.engine.large_payloads import LargePayloads
from ledgerq.worker.engine.maintenance import Maintenance
from ledgerq.worker.engine.reports import Reports
from ledgerq.worker.engine.takeover import take_over
from ledgerq.worker.engine.ticking import Ticking
from ledgerq.worker.engine.writer_state import WriterState
from ledgerq.worker.job_logging import EndedClaims
from ledgerq.worker.options import QueueOptions

__all__ = ["DEFAULT_OPTIONS", "Core", "open_core"]

T = TypeVar("T")

DEFAULT_OPTIONS: Final = QueueOptions()
_PAYLOAD_BUDGET_BYTES: Final = 32 * 1024 * 1024
_OPERATIONS_AT_ONCE: Final = 64
_MAX_KNOWN_NAMES: Final = 10_000
UNFINISHED: Final[tuple[State, ...]] = tuple(state for state in STATES if state not in FINISHED)


class Core:
    """The parts of one queue, put together; `Queue` is its public face."""

    def __init__(
        self,
        store: Store,
        *,
        default: QueueOptions = DEFAULT_OPTIONS,
        queues: Mapping[str, QueueOptions] | None = None,
        ready_window: int = 10_000,
        commit_interval_ms: float | None = None,
        overlap: bool | None = None,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        projections: Iterable[Projection] = (),
        writer: str | None = None,
    ) -> None:
        """Put the parts together; `take_over` begins. `writer`: its name in the log (None: host and process).

        `overlap`: whether commits overlap (None: when that is faster, as measured).
        """
        self._default, self._options = checked_options(default, queues)
        if type(ready_window) is not int or ready_window < 1:
            raise InvalidArgument(f"ready_window is a number of jobs from 1 on, not {ready_window!r}")
        self.clock = clock or SystemClock()
        self.entropy = entropy or SystemEntropy()
        self._writer = writer or f"{socket.gethostname()}:{os.getpid()}"
        host = ProjectionHost(projections)
        self.writer_state = WriterState(
            ready_window_rows=ready_window, payload_budget_bytes=_PAYLOAD_BUDGET_BYTES, host=host
        )
        pace = pace_of(store.location, commit_interval_ms, overlap)
        self.log = EventLog(store, clock=self.clock, commit_hook=self.writer_state, pace=pace, entropy=self.entropy)
        self.writer_state.log = self.log
        self.view = LedgerView(self.log)
        self.ended = EndedClaims(self.log)
        self.dispatcher = Dispatcher(self.writer_state, clock=self.clock, options_of=self.options, ended=self.ended)
        self.admission = Admission(self.writer_state, serve=self.dispatcher.serve)
        self.ticking = Ticking(
            self.writer_state, self.admission, clock=self.clock, entropy=self.entropy, options_of=self.options
        )
        self.maintenance = Maintenance(
            self.writer_state,
            self.dispatcher.leases,
            clock=self.clock,
            options_of=self.options,
            serve=self.dispatcher.serve,
            ended=self.ended,
            ticking=self.ticking,
        )
        self.reports = Reports(self.log)
        self.large = LargePayloads(self.writer_state, entropy=self.entropy)
        self.writer_state.on_change = self._changed
        self.writer_state.on_failure = self._failed
        self.writer_state.on_commit = self._committed
        # So many of an operator's calls read and decide at a time: thousands at once would hold the loop, and be late.
        self.operating = asyncio.Semaphore(_OPERATIONS_AT_ONCE)
        # One bulk at a time.
        self.bulk_lock = asyncio.Lock()
        self.on_move: Callable[[Job], None] | None = None
        """Called with each job that changed, while a bulk wants to know."""
        self._known_names: set[str] = set()
        self._change_waiters: list[asyncio.Future[None]] = []
        self.end_waits = EndWaits(self.clock)
        self._closed: asyncio.Future[None] | None = None
        self.on_failure: list[Callable[[LedgerError], None]] = []
        # What reads the store in the background ends before it is closed.
        self.on_close: list[Callable[[], Coroutine[Any, Any, None]]] = []

    async def take_over(self, *, accept_rollback: bool) -> None:
        """Become the store's writer; when that fails, the store is closed again."""
        try:
            with LogCorrupt.locating(self.log.store.location):
                await take_over(
                    self.log,
                    self.writer_state,
                    clock=self.clock,
                    options_of=self.options,
                    writer=self._writer,
                    version=package_version(),
                    accept_rollback=accept_rollback,
                )
        except BaseException:
            await self.log.close()
            raise
        self.dispatcher.keep_claims()
        self.maintenance.start()
        self.large.start()

    async def close(self) -> None:
        """Commit what is staged, end all tasks and close the store; a second call waits for the first."""
        if self._closed is None or not self._closed.done():
            self.log.check_owner()
        if self._closed is None:
            self._closed = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closed)

    async def _close(self) -> None:
        error = QueueClosed(f"the queue on {self.log.store.location} was closed")
        self.dispatcher.fail(error)
        self.end_waits.fail(error)
        for end in self.on_close:
            await end()
        await self.maintenance.close()
        await self.reports.close()
        await self.large.close()
        await self.dispatcher.close()
        try:
            with suppress(LedgerError):  # of a log that has failed: it takes no more
                # In its turn, or a bulk call that is half staged would go on behind the event that closes the log.
                async with self.log.gathering():
                    self.writer_state.apply_other(WriterClosed(self._writer))
        finally:
            await self.log.close()
            self._committed()

    def _changed(self, before: Job | None, after: Job | None) -> None:
        self.dispatcher.job_changed(before, after)
        if self.reports.newest and before is not None and (after is None or after.state != "claimed"):
            self.reports.ended(before)
        if self.on_move is not None and after is not None:
            self.on_move(after)
        if after is not None and after.spec.terms is not None and after.state in ("pending", "scheduled"):
            self.maintenance.schedule_expiry(after)
        if after is not None and after.state not in ("pending", "claimed"):
            self.maintenance.schedule(after)
            if self.end_waits.waiters and after.state in FINISHED:
                self.end_waits.finished(after)

    async def finished(self, id: bytes, job_id: str, timeout_ms: int | None) -> Job:
        """Wait until a job is finished, durably; returns it as it was then.

        Raises `JobNotFound`, and `TimeoutError` after so long by the clock (None: never).
        """
        self.log.check()
        with self.end_waits.waiting(id) as waiter:  # first of all: it may end while it is looked up
            async with self.refusing():
                job = await self.writer_state.require(id, job_id)
            if job.state not in FINISHED:
                self._tell_change()
                job = await self.end_waits.within(waiter, timeout_ms, job_id)
        await self.log.committed()
        return job

    async def drained(self, queues: Sequence[str], states: Collection[State] = UNFINISHED) -> None:
        """Wait until none of these queues holds an unfinished job, or one of these `states`."""
        while True:
            self.log.check()
            if not self.jobs_in(queues, states):
                await self.log.committed()
                if not self.jobs_in(queues, states):
                    return
            await self.next_change()

    def next_change(self) -> asyncio.Future[None]:
        """A future that is done after the next commit, or once none will follow, or when a job is waited for."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._change_waiters.append(waiter)
        return waiter

    def jobs_in(self, queues: Sequence[str], states: Collection[State]) -> int:
        """How many jobs of these queues are in these states, durable or not."""
        all_counters = [counters for queue in queues if (counters := self.writer_state.counters.get(queue)) is not None]
        return sum(counters.now[STATES.index(state)] for counters in all_counters for state in states)

    def _committed(self) -> None:
        if self.writer_state.gone_blobs:
            self.large.delete_gone()
        self.ended.say()
        self._tell_change()

    def _tell_change(self) -> None:
        waiters, self._change_waiters = self._change_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _failed(self, error: LedgerError) -> None:
        self.dispatcher.fail(error)
        self.end_waits.fail(error)
        self._committed()
        for callback in self.on_failure:
            asyncio.get_running_loop().call_soon(callback, error)

    @asynccontextmanager
    async def refusing(self) -> AsyncIterator[None]:
        """Delay a refusal until the state that it rests on is durable: a refusal is an answer, too."""
        try:
            yield
        except (ClaimLost, DuplicateJobId, EffectConflict, InvalidState, JobNotFound, UniqueKeyHeld):
            await self.log.committed()
            raise

    async def durably(self, answer: Coroutine[Any, Any, T]) -> T:
        """Delay an answer until all that it was read from is durable: the store also shows what is not durable yet."""
        try:
            self.log.check()
        except LedgerError:
            answer.close()
            raise
        found = await answer
        await self.log.committed()
        return found

    def check_name(self, queue: str) -> None:
        """Raise `InvalidQueueName` for a value that can't name a queue."""
        if type(queue) is not str or queue not in self._known_names:
            queue_name_bytes(queue)
            if len(self._known_names) < _MAX_KNOWN_NAMES:
                self._known_names.add(queue)

    def options(self, queue: str) -> QueueOptions:
        """The options in force for a queue."""
        return self._options.get(queue, self._default)


async def open_core(
    url: str,
    store: Store | None,
    store_options: StoreOptions | None,
    *,
    clock: Clock | None,
    take_over: bool,
    wait: float | None,
    accept_rollback: bool,
    **parts: Any,
) -> Core:
    """Make a core that has become the writer of `store`, or of the one at `url`; `parts` as for `Core`."""
    check_wait(take_over, wait, is_open=store is not None)
    opened = store or await open_store(
        url, clock=clock or SystemClock(), options=store_options, take_over=take_over, wait=wait
    )
    try:
        core = Core(opened, clock=clock, **parts)
    except BaseException:
        await opened.close()
        raise
    await core.take_over(accept_rollback=accept_rollback)
    return core
