"""Defects to plant in the library, one at a time: each breaks one promise, and the simulation must notice each of them.

A checker that never complains proves nothing; these show that it does. A defect is a function that patches the library
through pytest's `monkeypatch`.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import appender, flights, keys, log, memory, writer
from ledgerq.eventlog.codec import digest_of, encode_batch
from ledgerq.eventlog.errors import OutcomeUnknown
from ledgerq.eventlog.events import Claimed, Nacked, Sealed
from ledgerq.eventlog.side_records import encode_sealed
from ledgerq.projections import job as jobs
from ledgerq.projections import runner, schedule, selection, stats
from ledgerq.projections.index_keys import CLAIMED, SCHEDULED, leading_ms
from ledgerq.worker import bulk, execution, running
from ledgerq.worker.claims import Waiter
from ledgerq.worker.engine import (
    admission,
    commands,
    commit_rows,
    core,
    decisions,
    dispatcher,
    effect_staging,
    leases,
    maintenance,
    ready_window,
    settlement,
    takeover,
    ticking,
    writer_state,
)
from ledgerq.worker.engine.newer import Newer
from ledgerq.worker.queue import Queue
from tests.simulation.limit_defects import LIMIT_DEFECTS
from tests.simulation.step_defects import STEP_DEFECTS
from tests.simulation.unique_defects import UNIQUE_DEFECTS

__all__ = ["DEFECTS"]

Patch = pytest.MonkeyPatch


def ack_told_before_the_flush(patch: Patch) -> None:
    """`ack` and `ack_many` return while their events are only staged."""

    async def ack(parts: Any, claim: Any, result: Any = None, effects: Any = None) -> None:
        settlement.stage_ack(parts, claim, result)

    async def ack_many(parts: Any, claims: Any, results: Any = None) -> None:
        for claim in claims:
            settlement.stage_ack(parts, claim)

    patch.setattr(settlement, "ack", ack)
    patch.setattr(settlement, "ack_many", ack_many)


def everything_told_before_the_flush(patch: Patch) -> None:
    """Calls don't wait for their commit."""

    def committed(self: Any) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    patch.setattr(writer.EventLog, "committed", committed)


def claim_handed_over_before_the_flush(patch: Patch) -> None:
    """A claim is returned while its event is only staged."""

    async def claim(
        self: Any, queues: Sequence[str], *, limit: int, lease_ms: int | None, wait_ms: int | None, **more: Any
    ) -> list[Any]:
        for queue in queues:
            if claims := self._take(queue, limit, lease_ms, **more):
                return list(claims)
        return list(await self._wait(Waiter(queues, limit, lease_ms, **more), wait_ms))

    patch.setattr(dispatcher.Dispatcher, "claim", claim)


def claims_not_checked(patch: Patch) -> None:
    """Any former claim of a job may settle it."""
    real = decisions.current

    def current(job: Any, claim_offset: int) -> Any:
        return job if job is not None and job.state == "claimed" else real(job, claim_offset)

    patch.setattr(decisions, "current", current)


def refusals_told_before_the_flush(patch: Patch) -> None:
    """A refusal rests on what is only staged."""

    class Refusing:
        async def __aenter__(self) -> None: ...
        async def __aexit__(self, *error: object) -> None: ...

    patch.setattr(core.Core, "refusing", lambda self: Refusing())


def leases_never_end(patch: Patch) -> None:
    """Leases are never checked."""
    patch.setattr(leases.Leases, "expired", lambda self, now_ms, limit: [])
    patch.setattr(leases.Leases, "next_ms", lambda self: None)


def leases_end_at_once(patch: Patch) -> None:
    """A lease is over whenever it is checked."""
    real = leases.Leases.expired
    patch.setattr(leases.Leases, "expired", lambda self, now_ms, limit: real(self, now_ms + 86_400_000, limit))


def interrupted_claims_stay(patch: Patch) -> None:
    """Claims of a writer that is gone are not found."""

    async def none(live_: Any) -> list[Any]:
        return []

    patch.setattr(takeover, "_claimed", none)


def _rows_left(prefix: bytes) -> Callable[[Patch], None]:
    real = commit_rows.index_changes

    def index_changes(touched: Any) -> Any:
        return {key: value for key, value in real(touched).items() if value is not None or not key.startswith(prefix)}

    return lambda patch: patch.setattr(commit_rows, "index_changes", index_changes)


def payload_deleted_with_the_ack(patch: Patch) -> None:
    """A done job's payload goes at once, not when it is swept."""
    real = commit_rows.index_changes

    def index_changes(touched: Any) -> Any:
        done = [after for _, after in touched.values() if after is not None and after.state == "done"]
        return real(touched) | {keys.payload_key(after.offset): None for after in done}

    patch.setattr(commit_rows, "index_changes", index_changes)


def wake_up_lost(patch: Patch) -> None:
    """New jobs are not given to waiting calls."""
    patch.setattr(dispatcher.Dispatcher, "serve", lambda self: self._fresh.clear())


def scheduled_jobs_overlooked(patch: Patch) -> None:
    """Maintenance is not woken for what is due."""
    patch.setattr(maintenance._TimedRange, "schedule", lambda self, key, due_ms: False)


def promoted_too_early(patch: Patch) -> None:
    """A job is pending a second before it is due."""
    real = decisions.promote
    patch.setattr(decisions, "promote", lambda job, *, now_ms: real(job, now_ms=now_ms + 1000))
    real_ms = leading_ms
    patch.setattr(maintenance, "leading_ms", lambda key, prefix: real_ms(key, prefix) - 1000)


def chained_to_a_wrong_digest(patch: Patch) -> None:
    """A record batch carries another digest than that of the one before it."""
    real = encode_batch

    def encoded(epoch: int, previous: bytes, *more: Any) -> bytes:
        return real(epoch, bytes(32), *more)

    patch.setattr(flights, "encode_batch", encoded)


def digests_not_checked(patch: Patch) -> None:
    """The chain is walked, and its digests are not compared."""

    def add(self: Any, batch: Any) -> None:
        self._last = batch
        self._batches += 1
        self.next_offset = batch.next_offset

    patch.setattr(log.Chain, "add", add)
    patch.setattr(log.Chain, "end", lambda self, head: None)


def anchor_not_checked(patch: Patch) -> None:
    """A log that was cut off opens without an error."""

    async def check_anchor(self: Any, anchor: Any) -> None: ...

    patch.setattr(log.LogReader, "check_anchor", check_anchor)


def time_goes_back(patch: Patch) -> None:
    """A commit bears the clock's time even when that is before the last one's."""

    def commit(self: Any) -> Any:
        if self._open is None:
            self._open = writer.Commit(self.next_offset, self.clock.now_ms())
            self._wake.set()
        return self._open

    patch.setattr(writer.EventLog, "commit", commit)


def failed_commit_taken_for_durable(patch: Patch) -> None:
    """A commit whose fate is unknown counts as done, and the log goes on after it."""
    real = memory.MemoryStore.commit

    async def commit(self: Any, batch: Any, anchor: Any) -> None:
        try:
            await real(self, batch, anchor)
        except OutcomeUnknown:
            return

    patch.setattr(memory.MemoryStore, "commit", commit)


def unique_keys_not_looked_up(patch: Patch) -> None:
    """A unique key is always free."""

    async def holders(self: Any, wanted: Sequence[bytes]) -> dict[bytes, bytes | None]:
        return dict.fromkeys(wanted)

    patch.setattr(admission.Admission, "holders", holders)


def attempts_without_end(patch: Patch) -> None:
    """A claim whose lease ended is tried again, however often."""
    real = decisions.expire

    def expire(job: Any, **more: Any) -> Any:
        spec = replace(job.spec, max_attempts=1 << 20)
        return real(replace(job, spec=spec), **more)

    patch.setattr(decisions, "expire", expire)


def crashes_not_counted(patch: Patch) -> None:
    """A claim that ended with its process is no crash."""
    patch.setattr(decisions, "counts_as_crash", lambda claims, *, orderly=False: False)


def claimed_jobs_left_by_a_bulk(patch: Patch) -> None:
    """A bulk cancellation asks no worker to stop."""
    patch.setitem(selection.BULK_STATES, "cancel", ("scheduled", "pending"))


def bulk_open_for_ever(patch: Patch) -> None:
    """A bulk that was interrupted is not found again."""

    async def resume(self: Any) -> list[Any]:
        return []

    async def finish(self: Any, opened: Any, **more: Any) -> Any:
        await self._core.log.committed()
        raise asyncio.CancelledError

    patch.setattr(bulk.Bulk, "resume", resume)
    patch.setattr(bulk.Bulk, "_finish", finish)


def expired_jobs_handed_out(patch: Patch) -> None:
    """A job that has expired is like any other."""
    patch.setattr(decisions, "is_too_late", lambda job, time_ms: False)


def expired_jobs_wait(patch: Patch) -> None:
    """A job that has expired is cancelled when it would be claimed, and not before."""
    patch.setattr(maintenance.Maintenance, "schedule_expiry", lambda self, waiting: None)
    patch.setattr(maintenance.Maintenance, "_not_started", lambda self, job, *, now_ms: [])


def dead_letters_stay(patch: Patch) -> None:
    """A job that dies stays where it is."""
    patch.setattr(decisions, "_dead_letter", lambda job, options: [])


def moved_jobs_left_in_their_window(patch: Patch) -> None:
    """A job that is moved stays in the window of its old queue, too."""
    real = writer_state.WriterState._arrive

    def arrive(self: Any, left: Any, after: Any) -> Any:
        return real(self, ready_window.ReadyWindow(1, ready_window.PayloadBudget(0)), after)

    patch.setattr(writer_state.WriterState, "_arrive", arrive)


def counters_drift(patch: Patch) -> None:
    """Claims given back are not counted."""
    real = stats.stats_delta

    def stats_delta(before: Any, event: Any, after: Any) -> Any:
        if type(event) is Nacked and event.released:
            event = replace(event, released=False)
        return real(before, event, after)

    patch.setattr(stats, "stats_delta", stats_delta)


def newest_first(patch: Patch) -> None:
    """The window gives the job that came last."""
    real = ready_window.ReadyWindow.take

    def take(self: Any) -> Any:
        last = max(self.jobs.values(), key=lambda one: one.position, default=None)
        if last is None or last.payload is None:
            return real(self)
        self.drop(last.job.spec.id)
        return last

    patch.setattr(ready_window.ReadyWindow, "take", take)


def hints_lead(patch: Patch) -> None:
    """The hint leaves out a whole priority."""
    real = ready_window.ReadyWindow.position_after
    patch.setattr(ready_window.ReadyWindow, "position_after", lambda self: (real(self)[0] + 1, 0))


def paused_queues_hand_out(patch: Patch) -> None:
    """Pauses are not checked."""
    patch.setattr(writer_state.WriterState, "paused", lambda self, queue: False)


def failed_queue_rings_for_ever(patch: Patch) -> None:
    """The maintenance of a queue that failed is woken again and again by what is due."""
    real = maintenance.Maintenance._run

    async def run(self: Any) -> None:
        await real(self)
        while self._next_ms() <= self._clock.now_ms():
            await asyncio.sleep(0)

    patch.setattr(maintenance.Maintenance, "_run", run)


def cancel_forgotten(patch: Patch) -> None:
    """`cancel` answers, and stages nothing."""

    async def cancel(parts: Any, job_id: str, *, actor: str, reason: str) -> Any:
        return await commands.find(parts, job_id)

    patch.setattr(commands, "cancel", cancel)


def given_up_claims_kept(patch: Patch) -> None:
    """Claims for a call that was cancelled are not given back."""
    patch.setattr(dispatcher.Dispatcher, "give_back", lambda self, claims: None)


def lease_begins_before_its_holder_knows(patch: Patch) -> None:
    """A lease is over as if it had begun long before its claim was returned."""
    real = dispatcher.Dispatcher._begin_leases

    def begin(self: Any, claims: Any) -> Any:
        now_ms = self._clock.now_ms()
        for claim in real(self, claims):
            self.leases.hold(leases.Lease(now_ms + claim.lease_ms // 2, claim.id, claim.offset, now_ms))
        return claims

    patch.setattr(dispatcher.Dispatcher, "_begin_leases", begin)


def reads_told_before_the_flush(patch: Patch) -> None:
    """What `jobs`, `stats` and `history` answer may not be durable."""

    async def durably(self: Any, answer: Any) -> Any:
        return await answer

    patch.setattr(core.Core, "durably", durably)


def drained_before_the_flush(patch: Patch) -> None:
    """`drained` returns while the last settlement is only staged."""

    async def drained(self: Any, queues: Sequence[str]) -> None:
        while self._unfinished(queues):
            waiter = asyncio.get_running_loop().create_future()
            self._drain_waiters.append(waiter)
            await waiter

    patch.setattr(core.Core, "drained", drained)


def stop_forgotten_at_the_end_of_a_lease(patch: Patch) -> None:
    """A job that was to stop is tried again when its lease ends."""
    real = decisions.expire
    patch.setattr(decisions, "expire", lambda job, **more: real(replace(job, cancel_request=None), **more))


def kept_claims_end_with_their_writer(patch: Patch) -> None:
    """A takeover ends the claims of holders in other processes, too."""
    real = takeover._claimed

    async def claimed(state: Any) -> Any:
        return [replace(job, kept=False) for job in await real(state)]

    patch.setattr(takeover, "_claimed", claimed)


def kept_claims_without_leases(patch: Patch) -> None:
    """A claim that outlived its writer never ends by itself."""
    patch.setattr(dispatcher.Dispatcher, "keep_claims", lambda self: None)


def backoff_left_out(patch: Patch) -> None:
    """A failed try is tried again at once."""
    patch.setattr(decisions, "backoff_ms", lambda attempt, options, fraction: 0)


def waiting_counted_from_the_beginning(patch: Patch) -> None:
    """The histogram of waiting has the time since a job was enqueued, retries and all."""
    real = stats.QueueCounters.apply

    def apply(self: Any, before: Any, event: Any, after: Any) -> None:
        if type(event) is Claimed and before is not None:
            before = replace(before, since_ms=before.enqueued_ms)
        real(self, before, event, after)

    patch.setattr(stats.QueueCounters, "apply", apply)


def promoted_a_minute_late(patch: Patch) -> None:
    """Maintenance is woken a minute late."""
    real = maintenance._TimedRange.schedule
    patch.setattr(maintenance._TimedRange, "schedule", lambda self, key, due_ms: real(self, key, due_ms + 60_000))


def followers_skip(patch: Patch) -> None:
    """A follower of the log passes over what came while it read."""
    real = log.LogReader.read

    async def read(self: Any, start: int = 0, stop: int | None = None) -> Any:
        async for record in real(self, start + 1 if start else 0, stop):
            yield record

    patch.setattr(log.LogReader, "read", read)


def projections_begin_again(patch: Patch) -> None:
    """A user's projection is given what it has had already when the queue opens."""
    real = runner.ProjectionHost.restore

    async def restore(self: Any, store: Any) -> None:
        await real(self, store)
        self.offsets = dict.fromkeys(self.offsets, 0)

    patch.setattr(runner.ProjectionHost, "restore", restore)


def worker_runs_too_many(patch: Patch) -> None:
    """A worker runs as many handlers as it holds claims."""

    class Open:
        async def acquire(self) -> None: ...
        def release(self) -> None: ...

    patch.setattr(asyncio, "Semaphore", lambda count: Open())


def worker_renews_nothing(patch: Patch) -> None:
    """A worker lets the leases of what it works on end."""

    async def extend(self: Any, claim: Any, lease: float) -> Any:
        return claim

    patch.setattr(Queue, "extend", extend)


def handlers_run_without_end(patch: Patch) -> None:
    """A handler may run for longer than its time-out."""
    patch.setattr(execution.Handler, "timeout_ms", None)


def files_set_aside_untold(patch: Patch) -> None:
    """Files were moved out of the store's way, and the log has no event of it."""

    async def none(self: Any) -> list[Any]:
        return []

    patch.setattr(memory.MemoryStore, "set_aside", none)


def sent_behind_a_refused_commit(patch: Patch) -> None:
    """A commit is handed to the store although one before it was refused and is to be tried again."""

    async def commit(self: Any, flight: Any, batch: Any, anchor: Any) -> Any:
        self.refusal = None
        return await self._store.commit(batch, anchor)

    async def retry(self: Any) -> None:
        refusal, self.refusal = self.refusal, None
        await asyncio.sleep(max(refusal.last_ms - refusal.now_ms, 1) / 1000)
        for flight in list(self.under_way):
            await self._send(flight)

    patch.setattr(flights.Flights, "_commit", commit)
    patch.setattr(flights.Flights, "retry", retry)


def second_commit_told_with_the_first(patch: Patch) -> None:
    """When one commit is durable, the one on its way behind it is taken for durable as well."""
    real = flights.Flights._report

    def report(self: Any, flight: Any, times: Any) -> None:
        real(self, flight, times)
        while self.under_way and self.under_way[0].task is not None:
            real(self, self.under_way.popleft(), times)

    patch.setattr(flights.Flights, "_report", report)


def anchor_ahead_of_the_log(patch: Patch) -> None:
    """The anchor is that of the commit that was asked for last, durable or not."""
    real_commit, real_flush = memory.MemoryStore.commit, memory.MemoryStore.flush

    async def commit(self: Any, batch: Any, anchor: Any) -> None:
        self.asked = anchor
        await real_commit(self, batch, anchor)

    def flush(self: Any, anchor: Any = None) -> None:
        real_flush(self, None if anchor is None else getattr(self, "asked", anchor))

    patch.setattr(memory.MemoryStore, "commit", commit)
    patch.setattr(memory.MemoryStore, "flush", flush)


def older_of_two_states_taken(patch: Patch) -> None:
    """Of a job that both commits on their way concern, the state after the first one counts."""

    def newer(self: Any, id: bytes) -> Any:
        if id in self.changes:
            return self.changes[id]
        return next(touched[id] for touched in self._undurable if id in touched)[1]

    patch.setattr(Newer, "__getitem__", newer)


def only_the_oldest_commit_is_newer_than_the_store(patch: Patch) -> None:
    """Reads leave out what the second commit on its way has touched."""
    real = Newer.__init__
    patch.setattr(Newer, "__init__", lambda self, undurable: real(self, undurable[:1]))


def text_deleted_with_the_ack(patch: Patch) -> None:
    """A done job's texts go at once, not when it is swept."""
    real = commit_rows.index_changes

    def index_changes(touched: Any) -> Any:
        done = [after for _, after in touched.values() if after is not None and after.state == "done"]
        return real(touched) | {keys.text_key(at): None for after in done for at in after.texts}

    patch.setattr(commit_rows, "index_changes", index_changes)


def distances_count_from_the_first_event(patch: Patch) -> None:
    """The distance of an event leads to the job's first event, not to the one before."""
    patch.setattr(jobs.Job, "last_offset", property(lambda self: self.offset))


def text_sealed_under_another_offset(patch: Patch) -> None:
    """A text gets the row of the offset before that of its event."""

    def put_beside(self: Any, value: Any) -> Any:
        commit, offset = self.commit(), self.next_offset - 1
        row = encode_sealed(self._entropy.take(16), value)
        commit.payloads[keys.text_key(offset)] = row
        return Sealed(offset, len(row), digest_of(row))

    patch.setattr(appender.Appender, "put_beside", put_beside)


def text_digested_before_it_is_salted(patch: Patch) -> None:
    """The digest in an event is that of the text alone, which can be guessed."""
    real = appender.Appender.put_beside

    def put_beside(self: Any, value: Any) -> Any:
        return replace(real(self, value), digest=digest_of(value.encode()))

    patch.setattr(appender.Appender, "put_beside", put_beside)


def keys_of_format_2_not_looked_up(patch: Patch) -> None:
    """A unique key is looked up by its digest alone, which no job of an upgraded store has."""
    real = admission._unique
    patch.setattr(admission, "_unique", lambda prepared: real(prepared)[:1])


def secret_made_anew_at_each_opening(patch: Patch) -> None:
    """A writer takes a new secret, whatever the store has."""

    async def find_secret(self: Any) -> None:
        self.has_secret, self.secret = False, self._entropy.take(32)

    patch.setattr(appender.Appender, "find_secret", find_secret)


def secret_taken_and_not_written(patch: Patch) -> None:
    """A writer digests unique keys with a secret of its own."""
    real = appender.Appender.find_secret

    async def find_secret(self: Any) -> None:
        await real(self)
        self.secret = bytes(32)

    patch.setattr(appender.Appender, "find_secret", find_secret)


def effects_left_out(patch: Patch) -> None:
    """A job is acked, and what it has set is dropped."""
    patch.setattr(writer_state.WriterState, "apply_value", lambda self, event, sealed=b"": None)


def effects_of_tries_that_failed(patch: Patch) -> None:
    """What a try has set is committed though it failed."""
    real = running.Running._fail

    async def fail(self: Any, error: BaseException, text: str) -> Any:
        if self.effects is not None:
            await effect_staging.stage_effects(self._runner.queue.queue._core, self.effects, job=self.claim.id)
        return await real(self, error, text)

    patch.setattr(running.Running, "_fail", fail)


def tick_adds_its_job_twice(patch: Patch) -> None:
    """A tick adds its job twice."""
    real = ticking.Ticking._enqueue

    def enqueue(self: Any, prepared: Any, replaced: Any) -> None:
        real(self, prepared, replaced)
        id = prepared.event.id
        real(self, prepared._replace(event=replace(prepared.event, id=id[:-1] + bytes([id[-1] ^ 1]))), None)

    patch.setattr(ticking.Ticking, "_enqueue", enqueue)


def ticks_again(patch: Patch) -> None:
    """The tick after one is a second early: of a schedule of each second it is the same one again."""
    real = ticking.Ticking.next_of
    patch.setattr(
        ticking.Ticking,
        "next_of",
        lambda self, spec, zone, jitter_ms, after_ms: real(self, spec, zone, jitter_ms, after_ms - 1000),
    )


def tick_without_its_job(patch: Patch) -> None:
    """A tick is recorded, and its job is not there."""
    patch.setattr(ticking.Ticking, "_enqueue", lambda self, prepared, replaced: None)


def ticks_lost_at_a_takeover(patch: Patch) -> None:
    """A new writer lets only those schedules tick that it sets itself."""
    real = maintenance.Maintenance.begin_ticks
    patch.setattr(maintenance.Maintenance, "begin_ticks", lambda self, schedules: real(self, ()))


def paused_schedules_tick(patch: Patch) -> None:
    """A pause is recorded, and the schedule ticks on."""
    patch.setattr(schedule.Schedule, "waits_until_ms", property(lambda self: self.due_ms if self.next_ms else 0))
    patch.setattr(schedule, "_is_wrong_tick", lambda before, event: False)


DEFECTS: dict[str, Callable[[Patch], None]] = {
    one.__name__: one
    for one in (
        ack_told_before_the_flush,
        everything_told_before_the_flush,
        claim_handed_over_before_the_flush,
        claims_not_checked,
        refusals_told_before_the_flush,
        leases_never_end,
        leases_end_at_once,
        interrupted_claims_stay,
        payload_deleted_with_the_ack,
        wake_up_lost,
        scheduled_jobs_overlooked,
        effects_left_out,
        effects_of_tries_that_failed,
        promoted_too_early,
        chained_to_a_wrong_digest,
        digests_not_checked,
        anchor_not_checked,
        time_goes_back,
        failed_commit_taken_for_durable,
        unique_keys_not_looked_up,
        attempts_without_end,
        crashes_not_counted,
        claimed_jobs_left_by_a_bulk,
        bulk_open_for_ever,
        expired_jobs_handed_out,
        expired_jobs_wait,
        dead_letters_stay,
        moved_jobs_left_in_their_window,
        counters_drift,
        newest_first,
        hints_lead,
        paused_queues_hand_out,
        failed_queue_rings_for_ever,
        cancel_forgotten,
        given_up_claims_kept,
        lease_begins_before_its_holder_knows,
        reads_told_before_the_flush,
        drained_before_the_flush,
        stop_forgotten_at_the_end_of_a_lease,
        kept_claims_end_with_their_writer,
        kept_claims_without_leases,
        backoff_left_out,
        waiting_counted_from_the_beginning,
        promoted_a_minute_late,
        followers_skip,
        projections_begin_again,
        worker_runs_too_many,
        worker_renews_nothing,
        handlers_run_without_end,
        files_set_aside_untold,
        sent_behind_a_refused_commit,
        second_commit_told_with_the_first,
        anchor_ahead_of_the_log,
        older_of_two_states_taken,
        only_the_oldest_commit_is_newer_than_the_store,
        text_deleted_with_the_ack,
        distances_count_from_the_first_event,
        text_sealed_under_another_offset,
        text_digested_before_it_is_salted,
        keys_of_format_2_not_looked_up,
        secret_made_anew_at_each_opening,
        secret_taken_and_not_written,
        tick_adds_its_job_twice,
        ticks_again,
        tick_without_its_job,
        ticks_lost_at_a_takeover,
        paused_schedules_tick,
    )
} | {
    **UNIQUE_DEFECTS,
    "scheduled_rows_left": _rows_left(SCHEDULED),
    "claimed_rows_left": _rows_left(CLAIMED),
    "texts_left_at_the_sweep": _rows_left(keys.TEXT_PREFIX),
    **STEP_DEFECTS,
    **LIMIT_DEFECTS,
}
