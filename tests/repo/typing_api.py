"""The public face as a type checker sees it. It is checked by mypy (`make lint`) and never run.

`assert_type` says what a call returns; a line with `type: ignore` must be an error, since unused ones are errors, too.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, assert_type

import ledgerq
from ledgerq import (
    CallNext,
    Claim,
    ClaimLost,
    Clock,
    ClockWentBack,
    Dead,
    EnqueueResult,
    Fenced,
    Handle,
    InvalidArgument,
    Job,
    JobContext,
    LedgerError,
    LogCorrupt,
    LogRolledBack,
    ManualClock,
    MemoryDisk,
    MemoryStore,
    NewJob,
    Page,
    Projection,
    Queue,
    QueueOptions,
    QueueStats,
    Retry,
    StoreOptions,
    SystemClock,
    Tasks,
    Transition,
    Worker,
    WorkerQueue,
    claims,
    on,
)
from ledgerq.eventlog.codec import Head
from ledgerq.eventlog.events import State
from ledgerq.eventlog.log import LogReader, Verified
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.eventlog.store import ReadStore, Store
from ledgerq.eventlog.stores import open_reader
from ledgerq.events import Acked, Claimed, Event, Record
from ledgerq.projections.audit import AuditReport, Difference, audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.progress import Progress
from ledgerq.projections.rebuild import RebuildReport, rebuild
from ledgerq.projections.repair.copying import copy_into
from ledgerq.projections.replay import fold_to, replay
from ledgerq.sync import Queue as SyncQueue
from ledgerq.testing import memory_queue


class PerQueue:
    """A projection is a class with a name and two methods; it inherits nothing."""

    name = "per-queue"

    def __init__(self) -> None:
        self.counts: dict[bytes, int] = {}

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        self.counts = {key: int(value) for key, value in rows.items()}

    def apply(self, transition: Transition) -> dict[bytes, bytes | None]:
        assert_type(transition.event, Event)
        if isinstance(transition.event, ledgerq.events.Enqueued):
            assert_type(transition.event.queue, str)
        assert_type(transition.before, Job | None)
        if transition.after is None:
            return {}
        key = transition.after.queue.encode()
        self.counts[key] = self.counts.get(key, 0) + 1
        return {key: b"%d" % self.counts[key]}


async def opening(clock: Clock, store: Store) -> None:
    queue = await Queue.open("file:///var/lib/jobs")
    assert_type(queue, Queue)
    await queue.close()
    options = QueueOptions(max_attempts=5, lease_s=60, priority=10, backoff_base_s=0.5)
    async with Queue.open(
        "s3://bucket/jobs",
        default=options,
        queues={"mail": QueueOptions(keep_done_s=60)},
        ready_window=1000,
        commit_interval_ms=20,
        clock=clock,
        store=store,
        store_options=StoreOptions(),
        projections=[PerQueue()],
        accept_rollback=True,
    ) as opened:
        assert_type(opened, Queue)
        assert_type(opened.location, str)
        assert_type(opened.failure, LedgerError | None)
        assert_type(opened.on_failure, list[Callable[[LedgerError], None]])
        assert_type(opened.options("mail"), QueueOptions)
    await Queue.open(store=MemoryStore(MemoryDisk()), clock=ManualClock())
    await Queue.open(store="memory:///")  # type: ignore[call-overload]
    await Queue.open(projections=[object()])  # type: ignore[list-item]
    SystemClock().call_at(0, lambda: None).cancel()


async def enqueueing(queue: Queue) -> None:
    added = await queue.enqueue(
        "mail",
        b"payload",
        priority=1,
        delay=2.5,
        run_at=datetime.now(UTC),
        max_attempts=3,
        unique_key="key",
        unique_until="claimed",
        headers={"trace": "1"},
        job_id="01HF7YAT00000000000000000A",
    )
    assert_type(added, EnqueueResult)
    assert_type(added.job_id, str)
    assert_type(added.created, bool)
    many = await queue.enqueue_many("mail", [b"1", NewJob(b"2", priority=5, unique_key=b"key")])
    assert_type(many, list[EnqueueResult])
    await queue.enqueue("mail", "text")  # type: ignore[arg-type]
    await queue.enqueue("mail", b"", unique_until="forever")  # type: ignore[arg-type]


async def claiming(queue: Queue) -> None:
    taken = await queue.claim(["mail", "sms"], limit=5, lease=30, wait=None, worker="me")
    assert_type(taken, list[Claim])
    claim = taken[0]
    assert_type(claim.payload, bytes)
    assert_type(claim.headers, dict[str, str])
    assert_type(claim.job_id, str)
    assert_type(claim.queue, str)
    assert_type(claim.attempt, int)
    assert_type(claim.lease_expires_at, datetime)
    assert_type(await queue.extend(claim, 60), Claim)
    queue.watch(claim, lambda what: print(what.upper()))
    await queue.ack(claim)
    await queue.ack_many(taken)
    await queue.ack(claim, b"result")
    assert_type(claim.task, str | None)
    await queue.nack(claim, "why", delay=5, dead=False)
    await queue.release(claim, "not today")
    async with claims(queue, "mail", limit=10, wait=5).stream() as arriving:
        async for one in arriving:
            assert_type(one, Claim)


app = Tasks()


@app.task(queue="mail", max_attempts=5, timeout=60, retry=[on(ConnectionError, attempts=10), on(ValueError, dead=True)])
async def send(user_id: int, tenant: str = "none") -> list[str]:
    return [tenant] * user_id


@app.task()
def with_job(job: JobContext, x: float) -> None:
    assert_type(job.task, str | None)


@app.task(name="async with job")
async def with_job_too(job: JobContext, x: float) -> datetime:
    return job.lease_expires_at


@app.use
async def timed(job: JobContext, call_next: CallNext) -> object:
    return await call_next(job)


async def tasks(queue: Queue, other: Queue) -> None:
    handle = await send.enqueue(user_id=3, tenant="acme")
    assert_type(handle, Handle[list[str]])
    assert_type(await handle.result(timeout=30), list[str])
    assert_type(await handle, list[str])
    assert_type(handle.job_id, str)
    await send.enqueue("3")  # type: ignore[arg-type]
    await send.enqueue()  # type: ignore[call-arg]
    await send.enqueue(3, nobody=1)  # type: ignore[call-arg]
    assert_type(await send.options(delay=60, priority=5, queue=other).enqueue(4), Handle[list[str]])
    send.options(colour="red")  # type: ignore[call-arg]
    assert_type(await send.enqueue_many([{"user_id": 3}]), list[Handle[list[str]]])
    assert_type(await with_job.enqueue(2.5), Handle[None])
    assert_type(await with_job_too.enqueue(x=2.5), Handle[datetime])
    await with_job.enqueue(object(), 2.5)  # type: ignore[call-arg, arg-type]
    assert_type(send.handle("id"), Handle[list[str]])
    first, second = await asyncio.gather(handle, with_job_too.handle("id"))
    assert_type(first, list[str])
    assert_type(second, datetime)
    assert_type(await queue.handle("id").result(), Any)
    assert_type(await queue.result("id"), bytes | None)
    assert_type(await queue.finished("id", timeout=5), Job)
    async with Queue.open("jobs", tasks=app) as opened:
        assert_type(opened, Queue)
        await Worker(opened, tasks=app).run()
    async with memory_queue(app) as testing:
        assert_type(testing.clock, ManualClock)
        assert_type(testing.enqueued(send, user_id=3), list[Handle[list[str]]])
        await testing.drain(now=datetime.now(UTC))


def in_threads(path: Path) -> None:
    with SyncQueue.open(path, tasks=app, share=True, wait=None) as queue:
        assert_type(queue, SyncQueue)
        assert_type(queue.enqueue("mail", b"hello", delay=60), EnqueueResult)
        queue.enqueue("mail", "hello")  # type: ignore[arg-type]
        queue.enqueue("mail", b"hello", colour="red")  # type: ignore[call-arg]
        assert_type(queue.claim("mail", wait=10), list[Claim])
        assert_type(queue.get("id"), Job)
        assert_type(queue.handle("id").result_sync(timeout=5), Any)
        queue.pause("mail")  # type: ignore[call-arg]
        with queue.transaction() as t:
            t.kv.set("key", b"value")
            assert_type(t.enqueue(send, user_id=3), Handle[list[str]])
    with SyncQueue.connect("http://127.0.0.1:8420", token="t") as queue:
        handle = send.options(delay=60, queue=queue).enqueue_sync(user_id=3)
        assert_type(handle.result_sync(timeout=5), list[str])
        assert_type(send.enqueue_many_sync([{"user_id": 3}]), list[Handle[list[str]]])
        send.enqueue_sync("3")  # type: ignore[arg-type]


async def operating(queue: Queue) -> None:
    assert_type(await queue.cancel("id", actor="ann", reason="why"), Job)
    assert_type(await queue.requeue("id", actor="ann", reason="why"), Job)
    await queue.pause("mail", actor="ann", reason="why")
    await queue.resume("mail", actor="ann", reason="why")
    await queue.pause("mail")  # type: ignore[call-arg]


async def reading(queue: Queue) -> None:
    job = await queue.get("id")
    assert_type(job.state, State)
    assert_type(job.error, str)
    assert_type(await queue.payload("id"), PayloadRecord)
    assert_type(await queue.history("id"), list[Record])
    page = await queue.jobs("mail", state="dead", limit=10, after=None)
    assert_type(page, Page)
    assert_type(page.jobs, list[Job])
    assert_type(page.next, str | None)
    stats = await queue.stats("mail")
    assert_type(stats, QueueStats)
    assert_type(stats.pending, int)
    assert_type(stats.totals, dict[str, int])
    assert_type(await queue.queues(), list[str])
    await queue.jobs("mail", state="asleep")  # type: ignore[arg-type]


async def following(queue: Queue) -> None:
    async for record in queue.log.read(start=0, stop=10):
        assert_type(record.event, Event)
    async for record in queue.log.tail(0):
        assert_type(record.offset, int)
    assert_type(await queue.log.verify(), Verified)
    assert_type(await queue.log.head(), Head)


def _add(a: int, b: int = 1) -> int:
    return a + b


async def _later(text: str) -> str:
    return text


async def working(queue: Queue) -> None:
    worker = Worker(queue, concurrency=10, prefetch=2, grace=5, name="me")

    @worker.handler("mail", timeout=60)
    async def send(job: JobContext) -> None:
        assert_type(job.payload, bytes)
        assert_type(job.headers, dict[str, str])
        assert_type(job.attempt, int)
        assert_type(job.max_attempts, int)
        assert_type(job.priority, int)
        assert_type(job.offset, int)
        assert_type(job.id, bytes)
        assert_type(job.job_id, str)
        assert_type(await job.step("add", _add, 1, b=2), int)
        assert_type(await job.step("later", _later, "x"), str)
        assert_type(job.step_sync("add", _add, 1), int)
        await job.step("add", _add, "1")  # type: ignore[call-overload]
        assert_type(await queue.progress(job.job_id), Progress | None)
        job.progress(0.5, "half")
        job.log.info("half")
        assert_type(job.queue, str)
        assert_type(job.enqueued_ms, int)
        assert_type(job.lease_ms, int)
        assert_type(job.lease_expires_ms, int)
        assert_type(job.lease_expires_at, datetime)
        assert_type(job.claim, Claim)
        assert_type(job.stop_requested, bool)
        job.typo  # type: ignore[attr-defined]  # noqa: B018
        raise Retry(5, "busy")

    @worker.handler("sms")
    def text(job: JobContext) -> str:
        raise Dead("no such number")

    still_async: Callable[[JobContext], Awaitable[None]] = send
    still_plain: Callable[[JobContext], str] = text
    print(still_async, still_plain)
    await worker.run(until_empty=True, signals=False)
    worker.stop()

    @worker.handler("wrong")  # type: ignore[type-var]
    def wrong(job: JobContext, more: int) -> None: ...


async def proving(clock: Clock, store: Store) -> None:
    reader = await open_reader("file:///var/lib/jobs", pinned=True)
    assert_type(reader, ReadStore)
    report = await audit(reader, clock=clock, deep=True, projections=[PerQueue()])
    assert_type(report, AuditReport)
    assert_type(report.clean, bool)
    assert_type(report.differences, list[Difference])
    rebuilt = await rebuild(store, clock=clock, actor="ann", reason="why", only="jobs", until=None)
    assert_type(rebuilt, RebuildReport)
    assert_type(await copy_into(reader, store, clock=clock, actor="ann", reason="why"), RebuildReport)
    log = LogReader(reader, clock=clock)
    assert_type(await fold_to(log, time_ms=0), Fold)
    async for transition in replay(log, 0, 10):
        assert_type(transition, Transition)


def errors(error: LedgerError) -> int:
    assert_type(error.permanent, bool)
    match error:
        case LogCorrupt():
            return error.offset
        case LogRolledBack():
            return error.anchored_offset + error.head_offset
        case ClockWentBack():
            return error.now_ms - error.last_ms
        case ClaimLost() | Fenced() | InvalidArgument():
            return 1
        case _:
            return 0


def protocols(queue: Queue) -> tuple[WorkerQueue, Projection, Clock, Store]:
    """What may stand for what."""
    return queue, PerQueue(), ManualClock(), MemoryStore()


async def anything_that_a_worker_can_run_on(queue: WorkerQueue) -> None:
    """As `ledgerq worker` does it."""
    worker = Worker(queue)
    assert_type(worker.queue, WorkerQueue)
    await worker.run(until_empty=True)
    assert_type(await worker.queue.close(), None)


class Unclosable:
    """It lacks `close` and all the rest."""

    def options(self, queue: str) -> QueueOptions:
        return QueueOptions()


def lacking() -> WorkerQueue:
    return Unclosable()  # type: ignore[return-value]


def names(record: Record) -> None:
    print(ledgerq.Queue, ledgerq.claims)
    if isinstance(record.event, ledgerq.events.Acked | Claimed):
        assert_type(record.event, Acked | Claimed)
    if isinstance(record.event, ledgerq.Enqueued):  # type: ignore[attr-defined]
        print("the result of enqueue is an EnqueueResult, and no event")
    if isinstance(record.event, ledgerq.events.Typo):  # type: ignore[attr-defined]
        print("there is no such event")


def main(queue: Queue) -> None:
    asyncio.run(working(queue))
