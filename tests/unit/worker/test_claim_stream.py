"""Claims as a stream, and a worker on something that is no `Queue`."""

import asyncio
import sys
import types
from collections.abc import AsyncIterable, Callable, Sequence
from itertools import count

import pytest
from aiostream import Stream, pipe

from ledgerq.eventlog.clock import Clock, ManualClock
from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, LedgerError
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.worker.claim_stream import claims
from ledgerq.worker.claims import Claim
from ledgerq.worker.effects import Effects
from ledgerq.worker.engine.dispatcher import WatchCallback
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.outcomes import Dead, Retry
from ledgerq.worker.retry_rules import RetryRule
from ledgerq.worker.steps.steps import DoneStep
from ledgerq.worker.worker import Worker
from ledgerq.worker.worker_queue import WorkerQueue
from tests.support.cli_rig import Cli
from tests.support.loops import settle
from tests.support.rig import Rig, payloads
from tests.support.workers import Stage, working


async def test_the_stream_brings_every_claim_and_ends_when_its_wait_is_over() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(5)])
        seen: list[bytes] = []
        async with claims(rig.queue, "q", limit=2, wait=0).stream() as arriving:
            async for claim in arriving:
                seen.append(claim.payload)
                await rig.queue.ack(claim)
        assert seen == [b"%d" % i for i in range(5)]


async def test_the_stream_waits_for_jobs() -> None:
    async with Rig() as rig:
        arrived: list[Claim] = []

        async def take() -> None:
            async with claims(rig.queue, ("q", "other"), wait=10, worker="me").stream() as arriving:
                async for claim in arriving:
                    arrived.append(claim)
                    await rig.queue.ack(claim)

        task = asyncio.create_task(take())
        await settle()
        await rig.queue.enqueue("other", b"a")
        await rig.advance(9)
        await rig.queue.enqueue("q", b"b")
        await settle()
        assert payloads(arrived) == [b"a", b"b"]
        assert not task.done()
        await rig.advance(10)
        await task
        (job,) = (await rig.queue.jobs("q")).jobs
        assert job.worker == "me"


async def test_the_stream_goes_through_aiostreams_operators() -> None:
    running = peak = 0
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(20)])

        async def work(claim: Claim, *_: Claim) -> int:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            await settle()
            running -= 1
            await rig.queue.ack(claim)
            return int(claim.payload)

        def is_odd(number: int) -> bool:
            return number % 2 == 1

        mapped: Callable[[AsyncIterable[Claim]], Stream[int]] = pipe.map(work, task_limit=3)
        pipeline = claims(rig.queue, "q", limit=4, wait=0) | mapped | pipe.filter(is_odd)
        async with pipeline.stream() as results:
            odd = [number async for number in results]
        assert odd == list(range(1, 20, 2))
        assert peak == 3
        assert (await rig.queue.stats("q")).done == 20


async def test_whoever_leaves_the_stream_early_holds_what_it_got_until_the_lease_ends() -> None:
    async with Rig(default=QueueOptions(lease_s=30)) as rig:
        await rig.queue.enqueue_many("q", [b"%d" % i for i in range(5)])
        async with claims(rig.queue, "q", limit=3).stream() as arriving:
            async for claim in arriving:
                await rig.queue.ack(claim)
                break
        stats = await rig.queue.stats("q")
        assert (stats.done, stats.claimed, stats.pending) == (1, 2, 2)
        await rig.advance(30)
        assert payloads(await rig.queue.claim("q", limit=9)) == [b"1", b"2", b"3", b"4"]


async def test_whoever_leaves_the_stream_while_it_waits_takes_nothing_along() -> None:
    async with Rig() as rig:

        async def take() -> None:
            async with claims(rig.queue, "q").stream() as arriving:
                async for _ in arriving:
                    raise AssertionError("nothing was to arrive")

        task = asyncio.create_task(take())
        await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await rig.queue.enqueue("q", b"x")
        await settle()
        assert (await rig.queue.stats("q")).pending == 1


async def test_the_stream_raises_what_the_queue_raises() -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="limit"):
            async with claims(rig.queue, "q", limit=0).stream() as arriving:
                async for _ in arriving:
                    pass


# ---------------------------------------------------------------------- a double


class Double:
    """A queue in a list: the methods that a worker uses, and nothing else."""

    def __init__(self, jobs: dict[str, list[bytes]]) -> None:
        self.jobs = jobs
        self.said: list[tuple[object, ...]] = []
        self.on_failure: list[Callable[[LedgerError], None]] = []
        self.clock: Clock = ManualClock()
        self.watchers: dict[bytes, WatchCallback] = {}
        self.held: set[int] = set()
        self.empty = asyncio.Event()
        self.closed = False
        self._offsets = count(1)

    def options(self, queue: str) -> QueueOptions:
        """The same for all."""
        return QueueOptions(lease_s=30)

    async def claim(
        self,
        queue: str | Sequence[str],
        limit: int = 1,
        lease: float | None = None,
        wait: float | None = 0.0,
        worker: str | None = None,
    ) -> list[Claim]:
        """From the first queue that has any; waits without end."""
        assert not isinstance(queue, str)
        assert wait is None
        for name in queue:
            taken = [self.jobs[name].pop(0) for _ in self.jobs[name][:limit]]
            if taken:
                made = [
                    Claim(name, i.to_bytes(16), i, 1, 3, 0, 0, 0, 0, PayloadRecord(b"", None, payload))
                    for payload in taken
                    if (i := next(self._offsets))
                ]
                self.held |= {claim.offset for claim in made}
                return made
        await asyncio.Event().wait()
        raise AssertionError

    def _settled(self, claim: Claim, *what: object) -> None:
        if claim.offset not in self.held:
            raise ClaimLost("somebody else has it")
        self.held.discard(claim.offset)
        self.said.append((claim.payload, *what))
        if not self.held and not any(self.jobs.values()):
            self.empty.set()

    def effects(self) -> Effects:
        raise NotImplementedError

    async def ack_many(self, claims: Sequence[Claim], results: Sequence[bytes | None] | None = None) -> None:
        for claim in claims:
            await self.ack(claim)

    async def ack(self, claim: Claim, result: bytes | None = None, effects: Effects | None = None) -> None:
        """Done."""
        self._settled(claim, "ack")

    async def nack(
        self,
        claim: Claim,
        error: str,
        delay: float | None = None,
        dead: bool = False,
        error_type: str = "",
        rule: RetryRule | None = None,
        effects: Effects | None = None,
    ) -> None:
        """Failed."""
        self._settled(claim, "nack", error.splitlines()[-1], delay, dead)

    async def release(
        self, claim: Claim, reason: str = "released", delay: float | None = None, hold: float | None = None
    ) -> None:
        """Given back."""
        self._settled(claim, "release", reason)

    async def extend(self, claim: Claim, lease: float) -> Claim:
        """Renewed."""
        if claim.offset not in self.held:
            raise ClaimLost("somebody else has it")
        self.said.append((claim.payload, "extend", lease))
        return claim

    def watch(self, claim: Claim, callback: WatchCallback) -> None:
        """Remember the callback."""
        self.watchers[claim.payload] = callback

    async def drained(self, queues: str | Sequence[str]) -> None:
        """All settled."""
        await self.empty.wait()

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """None is done."""
        return None

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """Not kept."""

    def report(self, claim: Claim, fraction: float, text: str = "") -> None:
        """Not kept."""

    async def close(self) -> None:
        """Nothing to close."""
        self.closed = True


async def test_a_worker_runs_on_anything_that_has_the_methods() -> None:
    double = Double({"q": [b"good", b"bad", b"dead", b"again"]})
    queue: WorkerQueue = double
    worker = Worker(queue, concurrency=2)

    @worker.handler("q")
    async def handle(job: JobContext) -> None:
        match job.payload:
            case b"bad":
                raise ValueError("bad")
            case b"dead":
                raise Dead("no hope")
            case b"again":
                raise Retry(5, "busy")

    await worker.run(until_empty=True, signals=False)
    assert sorted(double.said) == [
        (b"again", "nack", "busy", 5, False),
        (b"bad", "nack", "ValueError: bad", None, False),
        (b"dead", "nack", "no hope", None, True),
        (b"good", "ack"),
    ]
    assert not double.on_failure


def test_the_command_line_runs_a_worker_on_a_double_and_closes_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Double] = []

    def make() -> Worker:
        made.append(Double({"q": [b"x"]}))
        worker = Worker(made[0])
        worker.handler("q")(lambda job: None)
        return worker

    module = types.ModuleType("makes_a_double")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "makes_a_double", module)
    Cli(capsys, monkeypatch).ok("worker", "makes_a_double:make", "--until-empty")
    assert (made[0].said, made[0].closed) == ([(b"x", "ack")], True)


async def test_a_double_is_renewed_watched_and_given_back() -> None:
    stage = Stage()
    double = Double({"q": [b"runs", b"cancelled", b"lost", b"stolen"]})
    assert isinstance(double.clock, ManualClock)
    worker = Worker(double, concurrency=4, grace=0)
    worker.handler("q")(stage)
    async with working(worker):
        assert len(stage.started) == 4
        double.watchers[b"cancelled"]("cancel")
        double.watchers[b"lost"]("lost")
        double.held.discard(4)
        await settle()
        double.clock.advance(seconds=10)
        await settle()
        assert stage.cancelled == [b"cancelled", b"lost", b"stolen"]
    assert double.said == [
        (b"cancelled", "nack", "stopped: its cancellation was requested", None, False),
        (b"runs", "extend", 30),
        (b"runs", "release", "released: the worker ended"),
    ]


async def test_a_double_that_fails_ends_the_worker() -> None:
    double = Double({"q": [b"x"]})
    stage = Stage()
    worker = Worker(double)
    worker.handler("q")(stage)
    task = asyncio.create_task(worker.run(signals=False))
    await settle()
    (callback,) = double.on_failure
    callback(LedgerError("the connection is gone"))
    with pytest.raises(LedgerError, match="the connection is gone"):
        await task
    assert stage.cancelled == [b"x"]
    assert double.said == []
