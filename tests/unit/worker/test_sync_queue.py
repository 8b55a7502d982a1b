"""The synchronous face: the methods of a queue from any thread, and what ends their waits."""

import asyncio
import inspect
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import ledgerq.sync
from ledgerq.eventlog.errors import InvalidArgument, InvalidState, JobFailed, QueueClosed, StoreInUse, WrongProcess
from ledgerq.projections.selection import Filter
from ledgerq.worker.bulk import Bulk
from ledgerq.worker.options import NewJob
from ledgerq.worker.outcomes import Dead
from ledgerq.worker.queue import Queue as AsyncQueue
from ledgerq.worker.queue_effects import Values
from ledgerq.worker.schedules import Schedules
from ledgerq.worker.sync.blocking import Owner
from ledgerq.worker.sync.sync_queue import Queue, SyncBulk, SyncSchedules, SyncValues
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.worker import Worker

WHO = {"actor": "ann", "reason": "a test"}
LIMIT_S = 60


def in_thread(call: Callable[[], Any]) -> "Future[Any]":
    """What a thread of its own makes of a call."""
    pool = ThreadPoolExecutor(1)
    made = pool.submit(call)
    pool.shutdown(wait=False)
    return made


def until_waiting(queue: Queue, name: str) -> None:
    """Return when a claim call waits for this queue."""
    inner = queue.asynchronous
    assert isinstance(inner, AsyncQueue)

    async def look() -> None:
        while not inner._core.dispatcher.waiters.waiting(name):
            await asyncio.sleep(0.001)

    queue._owner.start(look).result(LIMIT_S)


@pytest.mark.parametrize(
    ("face", "behind", "left_out"),
    [
        # `commit` is the end of `transaction`.
        (Queue, AsyncQueue, {"close", "commit"}),
        (SyncValues, Values, set[str]()),
        (SyncBulk, Bulk, set[str]()),
        (SyncSchedules, Schedules, set[str]()),
    ],
)
def test_each_method_that_is_awaited_is_there_and_waits(face: type, behind: type, left_out: set[str]) -> None:
    awaited = {name for name, _ in inspect.getmembers(behind, inspect.iscoroutinefunction) if name[0] != "_"} - left_out
    assert awaited
    for name in awaited:
        method = getattr(face, name)
        assert not inspect.iscoroutinefunction(method)
        assert inspect.signature(method) == inspect.signature(getattr(behind, name))


def test_what_opens_takes_the_same_arguments() -> None:
    for name in ("open", "connect"):
        asynchronous, face = (inspect.signature(getattr(one, name)) for one in (AsyncQueue, Queue))
        assert {**face.parameters} == {**asynchronous.parameters}


def test_a_script_enqueues_claims_settles_reads_and_operates() -> None:
    with ledgerq.sync.Queue.open() as queue:
        added = queue.enqueue("mail", b"hello", headers={"to": "ada"})
        many = queue.enqueue_many("mail", [b"1", NewJob(b"2", priority=1)])
        first, *others = queue.claim("mail", limit=3)
        assert [first.payload, *(claim.payload for claim in others)] == [b"2", b"hello", b"1"]
        queue.ack(first, b'"sent"')
        assert queue.result(many[1].job_id) == b'"sent"'
        assert queue.handle(many[1].job_id).result_sync(timeout=LIMIT_S) == b'"sent"'
        queue.nack(others[0], "no", dead=True)
        queue.release(others[1])
        assert queue.finished(added.job_id, timeout=0).state == "dead"
        assert [type(record.event).__name__ for record in queue.history(added.job_id)] == [
            *("Enqueued", "Claimed", "Nacked"),
        ]
        found = queue.bulk.requeue(Filter(queue="mail", state="dead"), actor="ann", reason="a test")
        assert (found.count, queue.get(added.job_id).state) == (1, "dead")
        assert queue.requeue(added.job_id, **WHO).state == "pending"
        queue.pause("mail", **WHO)
        assert queue.claim("mail") == []
        assert (queue.stats("mail").pending, queue.queues()) == (2, ["mail"])
        with pytest.raises(TimeoutError):
            queue.finished(added.job_id, timeout=0.001)
        assert queue.schedules.list() == []


def test_a_transaction_is_committed_at_its_end_or_not_at_all() -> None:
    with ledgerq.sync.Queue.open() as queue:
        with queue.transaction() as t:
            assert t.kv.get_sync("paid") is None
            t.kv.set("paid", b"1")
            t.enqueue("mail", b"hello")
            assert queue.kv.get("paid") is None
        assert (value := queue.kv.get("paid")) is not None
        assert (value.value, queue.stats("mail").pending) == (b"1", 1)
        with pytest.raises(ZeroDivisionError), queue.transaction() as t:
            t.kv.delete("paid")
            raise ZeroDivisionError
        assert queue.kv.get("paid") == value


def test_tasks_are_enqueued_from_many_threads_and_their_results_waited_for() -> None:
    app = Tasks()

    @app.task(queue="sums")
    async def double(x: int) -> int:
        if x < 0:
            raise Dead("negative")
        return 2 * x

    @app.task(queue="sums")
    def doubled_twice(x: int) -> int:
        return double.enqueue_sync(x).result_sync(LIMIT_S) * 2

    with ledgerq.sync.Queue.open(tasks=app) as queue, ThreadPoolExecutor(20) as threads:
        worker: Future[Worker] = Future()

        async def work() -> None:
            worker.set_result(Worker(queue.asynchronous, tasks=app))
            await worker.result().run(signals=False)

        working = queue._owner.start(work)
        handles = list(threads.map(double.enqueue_sync, range(100)))
        assert list(threads.map(lambda handle: handle.result_sync(LIMIT_S), handles)) == [2 * x for x in range(100)]
        options = double.options(priority=1, queue=queue)
        assert queue.get(options.enqueue_sync(1).job_id).priority == 1
        more = double.enqueue_many_sync([{"x": 5}, {"x": -1}])
        assert more[0].result_sync(LIMIT_S) == 10
        with pytest.raises(JobFailed, match="negative"):
            more[1].result_sync(LIMIT_S)
        assert doubled_twice.enqueue_sync(3).result_sync(LIMIT_S) == 12
        app.bind(queue)
        with pytest.raises(InvalidArgument, match=r"calls\[1\]"):
            double.enqueue_many_sync([{"x": 1}, {"x": "no number"}])
        queue._owner.loop.call_soon_threadsafe(worker.result().stop)
        working.result(LIMIT_S)


async def test_a_queue_of_a_running_loop_is_called_from_its_other_threads() -> None:
    app = Tasks()

    @app.task(queue="q")
    async def nothing() -> None: ...

    async with AsyncQueue.open(tasks=app) as queue:
        handle = await asyncio.to_thread(nothing.enqueue_sync)
        face = Queue(queue)
        assert (await asyncio.to_thread(face.get, handle.job_id)).state == "pending"
        with pytest.raises(InvalidState, match=r"`await` and enqueue of task 'nothing'"):
            nothing.enqueue_sync()
        with pytest.raises(InvalidState, match=r"await handle.result\(\)"):
            handle.result_sync()
        with pytest.raises(InvalidState, match="`await` and get of the queue that"):
            face.get(handle.job_id)
        with pytest.raises(InvalidState, match="`async with` and Queue"):
            ledgerq.sync.Queue.open()
        with pytest.raises(InvalidState, match="transaction of the queue"), face.transaction():
            pass
    with pytest.raises(QueueClosed):
        await asyncio.to_thread(face.get, handle.job_id)


def test_a_queue_whose_loop_has_ended_says_so() -> None:
    async def main() -> AsyncQueue:
        return await AsyncQueue.open()

    face = Queue(asyncio.run(main()))
    with pytest.raises(QueueClosed, match="its event loop has ended"):
        face.queues()
    face.close()


def test_tasks_run_inline_without_a_queue() -> None:
    app = Tasks()

    @app.task()
    async def half(x: int) -> float:
        return x / 2

    with app.inline():
        assert half.enqueue_sync(3).result_sync() == 1.5
        assert [handle.result_sync() for handle in half.enqueue_many_sync([{"x": 1}])] == [0.5]


def test_ctrl_c_ends_a_wait_and_what_it_waited_for_is_left_to_others() -> None:
    with ledgerq.sync.Queue.open() as queue:
        main = threading.get_ident()

        def interrupt() -> None:
            until_waiting(queue, "q")
            signal.pthread_kill(main, signal.SIGINT)

        interrupting = in_thread(interrupt)
        with pytest.raises(KeyboardInterrupt):
            queue.claim("q", wait=None)
        interrupting.result(LIMIT_S)
        queue.enqueue("q", b"1")
        (claim,) = queue.claim("q")
        assert claim.attempt == 1


def test_an_answer_that_comes_when_its_call_was_interrupted_is_given_back() -> None:
    with ledgerq.sync.Queue.open() as queue:
        begun, given_back = threading.Event(), Future[str]()

        async def call() -> str:
            begun.set()
            try:
                await asyncio.sleep(LIMIT_S)
            except asyncio.CancelledError:
                return "too late"
            return "never"

        async def unreceived(value: str) -> None:
            given_back.set_result(value)

        answer = queue._owner.start(call, unreceived)
        begun.wait(LIMIT_S)
        assert answer.cancel()
        assert given_back.result(LIMIT_S) == "too late"
        job = queue.enqueue("q", b"1")
        claims = queue.claim("q")
        queue._owner.start(lambda: queue._give_back(claims)).result(LIMIT_S)
        assert (queue.get(job.job_id).state, queue.claim("q")[0].attempt) == ("pending", 1)


def test_closing_ends_the_calls_of_other_threads_and_a_closed_queue_refuses_all() -> None:
    queue = ledgerq.sync.Queue.open()
    job = queue.enqueue("q", b"1", delay=1000)
    calls: list[Callable[[], Any]] = [
        lambda: queue.claim("q", wait=None),
        lambda: queue.finished(job.job_id),
        lambda: queue.drained("q"),
        lambda: queue._owner.wait(lambda: asyncio.sleep(LIMIT_S), ""),
    ]
    waiting = [in_thread(call) for call in calls]
    until_waiting(queue, "q")
    closing = [in_thread(queue.close) for _ in range(2)]
    for one in closing:
        one.result(LIMIT_S)
    assert [type(call.exception(LIMIT_S)) for call in waiting] == [QueueClosed] * 4
    with pytest.raises(QueueClosed):
        queue.enqueue("q", b"2")
    with pytest.raises(QueueClosed):
        queue.kv.get("k")
    queue.close()


def test_what_opens_in_vain_leaves_no_thread_and_a_path_is_a_place(tmp_path: Path) -> None:
    before = threading.active_count()
    with ledgerq.sync.Queue.open(tmp_path / "jobs") as queue:
        assert queue.location == str(tmp_path / "jobs")
        with pytest.raises(StoreInUse):
            ledgerq.sync.Queue.open(tmp_path / "jobs")
        with pytest.raises(InvalidArgument):
            ledgerq.sync.Queue.open(tmp_path / "others", ready_window=0)
        with pytest.raises(InvalidArgument, match=r"jobs\[1\]"):
            queue.enqueue_many("q", [b"1", "text"])  # type: ignore[list-item]
    assert not [thread for thread in threading.enumerate() if thread.name == "ledgerq-queue"]
    assert threading.active_count() <= before + 4  # of the store


def test_a_forked_child_is_refused_and_does_not_close_the_queue(tmp_path: Path) -> None:
    with ledgerq.sync.Queue.open(tmp_path / "jobs") as queue:
        job = queue.enqueue("q", b"1")
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            said = b"nothing"
            try:
                queue.get(job.job_id)
            except WrongProcess:
                queue.close()
                said = b"refused"
            finally:
                os.write(write, said)
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(read, 100) == b"refused"
        assert queue.get(job.job_id).state == "pending"
    with ledgerq.sync.Queue.open(tmp_path / "jobs") as queue:
        assert len(queue.history(job.job_id)) == 1


def test_an_owner_is_known_by_its_loop() -> None:
    with pytest.raises(Exception, match="no asyncio event loop runs here"):
        Owner.here("a queue")


def test_several_queues_of_one_process_share_a_store(tmp_path: Path) -> None:
    app = Tasks()

    @app.task(queue="q")
    def one() -> int:
        return 1

    with Queue.open(tmp_path, share=True) as first, Queue.open(tmp_path, share=True, tasks=app) as second:
        handle = one.enqueue_sync()
        (claim,) = first.claim("q", wait=LIMIT_S)
        first.ack(claim, b"1")
        assert (handle.result_sync(LIMIT_S), second.get(handle.job_id).state) == (1, "done")
        assert second.bulk.delete(Filter(queue="q", state="done"), actor="ann", reason="a test").count == 1
        with pytest.raises(InvalidArgument, match="kv belongs to the process that has the store open"):
            second.kv.get("k")
        with pytest.raises(InvalidArgument, match="effects"), second.transaction():
            pass
