"""Tracing with OpenTelemetry: which spans there are, what hangs together, and that jobs don't depend on it."""

import asyncio
import logging
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, SpanKind, StatusCode

from ledgerq.eventlog.errors import ClaimLost, InvalidArgument, OutcomeUnknown, PayloadTooLarge
from ledgerq.worker.execution import JobContext
from ledgerq.worker.options import NewJob, QueueOptions
from ledgerq.worker.outcomes import Dead, Retry
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.support.loops import settle, until
from tests.support.operators import Who
from tests.support.rig import Rig
from tests.support.workers import Stage, ThreadStage, fetching_ahead, working

ROOT = Path(__file__).resolve().parents[3]
WHO: Who = {"actor": "ada", "reason": "test"}
OWN = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """A provider of the test's own, and the spans that ended; nothing global is touched."""

    def __init__(self, **options: Any) -> None:
        self.provider = TracerProvider(**options)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")

    def named(self, name: str) -> list[ReadableSpan]:
        """The spans of this name, in the order in which they ended."""
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span of this name."""
        (span,) = self.named(name)
        return span

    def names(self) -> list[str]:
        """All names."""
        return [span.name for span in self._exporter.get_finished_spans()]


@pytest.fixture
def spans() -> Spans:
    """A fresh provider."""
    return Spans()


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Trace and span."""
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def traceparent(span: ReadableSpan) -> str:
    """The context of a span as the header's text. Source: W3C Trace Context."""
    assert span.context is not None
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    """Where it links to."""
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def ours(span: ReadableSpan) -> dict[str, Any]:
    """Its attributes."""
    return dict(span.attributes or {})


async def run_all(
    rig: Rig, function: Callable[[JobContext], Any], *, timeout: float | None = None, **more: Any
) -> None:
    """A worker handles what is pending in `q`."""
    worker = Worker(rig.queue, **more)
    worker.handler("q", timeout=timeout)(function)
    async with working(worker):
        if timeout is not None:
            await rig.advance(timeout)
        await settle()
        await until(lambda: not worker._slots.held)


async def well(job: JobContext) -> None:
    """A handler as it should be."""


# ---------------------------------------------------------------------- enqueueing


async def test_an_enqueue_is_a_producer_span_whose_context_is_in_the_headers(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        with spans.tracer.start_as_current_span("request") as request:
            added = await rig.queue.enqueue("q", b"12345", headers={"to": "ada"}, delay=5)
        span = spans.one("enqueue q")
        assert span.kind is SpanKind.PRODUCER
        assert span.parent is not None
        assert span.parent.span_id == request.get_span_context().span_id
        assert span.status.status_code is StatusCode.UNSET
        assert ours(span) == {
            "messaging.system": "ledgerq",
            "messaging.operation.name": "enqueue",
            "messaging.operation.type": "send",
            "messaging.destination.name": "q",
            "messaging.message.id": added.job_id,
            "messaging.message.body.size": 5,
            "ledgerq.created": True,
        }
        assert span.instrumentation_scope is not None
        assert span.instrumentation_scope.name == "ledgerq"
        record = await rig.queue.payload(added.job_id)
        assert record.headers == {"to": "ada", "traceparent": traceparent(span)}


async def test_the_span_lasts_until_the_job_is_durable(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        rig.faults.hold("sync:before")
        task = asyncio.create_task(rig.queue.enqueue("q", b""))
        await settle()
        assert spans.names() == []
        rig.faults.let_go("sync:before")
        await task
        assert spans.names() == ["enqueue q"]


async def test_nothing_of_the_context_goes_to_the_log_and_it_is_deleted_with_the_payload(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"")
        header = (await rig.queue.payload(added.job_id)).headers
        assert header is not None
        value = header["traceparent"].encode()
        assert [key for key, row in rig.disk.rows.items() if value in row and not key.startswith(b"p/")] == []
        await rig.queue.cancel(added.job_id, **WHO)
        await rig.advance(2 * 24 * 3600)
        assert [key for key, row in rig.disk.rows.items() if value in row] == []


async def test_baggage_travels_with_the_job(spans: Spans) -> None:
    seen: list[object] = []

    async def handle(job: JobContext) -> None:
        seen.append(baggage.get_baggage("tenant"))

    async with Rig(tracer_provider=spans.provider) as rig:
        token = otel_context.attach(baggage.set_baggage("tenant", "blue"))
        try:
            await rig.queue.enqueue("q", b"")
        finally:
            otel_context.detach(token)
        await run_all(rig, handle)
        assert seen == ["blue"]


async def test_a_context_of_the_callers_own_is_kept_and_linked_to(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"", headers={"traceparent": OWN, "to": "ada"})
        assert (await rig.queue.payload(added.job_id)).headers == {"traceparent": OWN, "to": "ada"}
        span = spans.one("enqueue q")
        own = (int(OWN[3:35], 16), int(OWN[36:52], 16))
        assert (span.kind, links(span)) == (SpanKind.CLIENT, [own])
        await run_all(rig, well)
        assert links(spans.one("process q")) == [own]


async def test_nothing_is_added_to_a_context_of_the_callers_own(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        token = otel_context.attach(baggage.set_baggage("tenant", "blue"))
        try:
            added = await rig.queue.enqueue_many("q", [NewJob(b"", headers={"traceparent": OWN}), b""])
        finally:
            otel_context.detach(token)
        kept = [(await rig.queue.payload(job.job_id)).headers for job in added]
        mine = {"traceparent": traceparent(spans.one("enqueue_many q")), "baggage": "tenant=blue"}
        assert kept == [{"traceparent": OWN}, mine]


async def test_a_header_that_is_no_context_is_kept_and_stops_nothing(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"", headers={"traceparent": "nonsense", "baggage": "a=1"})
        assert (await rig.queue.payload(added.job_id)).headers == {"traceparent": "nonsense", "baggage": "a=1"}
        await run_all(rig, well)
        assert links(spans.one("process q")) == []


async def test_a_batch_has_one_span_and_its_context_is_in_each_job(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        given: list[bytes | NewJob]
        given = [b"one", NewJob(b"two", headers={"to": "ada"}, priority=5), NewJob(b"3", headers={"traceparent": OWN})]
        added = await rig.queue.enqueue_many("q", given)
        span = spans.one("enqueue_many q")
        own = (int(OWN[3:35], 16), int(OWN[36:52], 16))
        assert (span.kind, links(span)) == (SpanKind.PRODUCER, [own])
        assert ours(span) == {
            "messaging.system": "ledgerq",
            "messaging.operation.name": "enqueue_many",
            "messaging.operation.type": "send",
            "messaging.destination.name": "q",
            "messaging.batch.message_count": 3,
        }
        mine = traceparent(span)
        kept = [(await rig.queue.payload(job.job_id)).headers for job in added]
        assert kept == [{"traceparent": mine}, {"traceparent": mine, "to": "ada"}, {"traceparent": OWN}]
        assert (await rig.queue.get(added[1].job_id)).priority == 5
        assert given[1] == NewJob(b"two", headers={"to": "ada"}, priority=5)
        await run_all(rig, well)
        assert sorted(links(span) for span in spans.named("process q")) == sorted([[ids(span)], [ids(span)], [own]])


@pytest.mark.parametrize("job", [b"x", NewJob(payload=b"x", headers={"a": "b"})])
async def test_the_context_is_given_to_a_few_jobs_of_a_batch_in_each_turn(
    spans: Spans, job: bytes | NewJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, carried = 0, Counter[int]()
    copied, constructed = NewJob.model_copy, NewJob.model_construct

    def counted(function: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            carried[turn] += 1
            return function(*given, **more)

        return call

    monkeypatch.setattr(NewJob, "model_copy", counted(copied))
    monkeypatch.setattr(NewJob, "model_construct", counted(constructed))
    async with Rig(tracer_provider=spans.provider) as rig:
        bulk = asyncio.create_task(rig.queue.enqueue_many("q", [job] * 1000))
        while not bulk.done():
            await asyncio.sleep(0)
            turn += 1
        assert len(await bulk) == 1000
    assert sum(carried.values()) == 1000
    assert max(carried.values()) <= 50


async def test_a_job_that_the_context_would_make_too_large_goes_without(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider, default=QueueOptions(max_payload_bytes=100)) as rig:
        one = await rig.queue.enqueue("q", bytes(80))
        (many,) = await rig.queue.enqueue_many("q", [bytes(80)])
        for added in (one, many):
            assert not (await rig.queue.payload(added.job_id)).headers
        for name in ("enqueue q", "enqueue_many q"):
            (event,) = spans.one(name).events
            assert event.name == "the trace context did not fit beside the payload"
            assert spans.one(name).status.status_code is StatusCode.UNSET
        with pytest.raises(PayloadTooLarge):
            await rig.queue.enqueue("q", bytes(101))
        with pytest.raises(PayloadTooLarge):
            await rig.queue.enqueue_many("q", [bytes(101)])
        assert (await rig.queue.stats("q")).pending == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda queue: queue.enqueue("q", "text"),
        lambda queue: queue.enqueue("q", None),
        lambda queue: queue.enqueue("", b""),
        lambda queue: queue.enqueue(None, b""),
        lambda queue: queue.enqueue("q", b"", headers=7),
        lambda queue: queue.enqueue("q", b"", headers={"a": 1}),
        lambda queue: queue.enqueue("q", b"", headers={"traceparent": 1}),
        lambda queue: queue.enqueue("q", b"", headers={1: "a"}),
        lambda queue: queue.enqueue("q", b"", nonsense=1),
        lambda queue: queue.enqueue_many("q", None),
        lambda queue: queue.enqueue_many("q", {b"a"}),
        lambda queue: queue.enqueue_many("q", {b"a": 1}),
        lambda queue: queue.enqueue_many("q", b"ab"),
        lambda queue: queue.enqueue_many("q", b""),
        lambda queue: queue.enqueue_many("q", ["text"]),
        lambda queue: queue.enqueue_many("q", [None]),
        lambda queue: queue.enqueue_many("q", [b""] * 10_001),
    ],
)
async def test_what_is_refused_is_refused_with_the_same_words(spans: Spans, call: Any) -> None:
    words = []
    for provider in (None, spans.provider):
        async with Rig(tracer_provider=provider) as rig:
            with pytest.raises((InvalidArgument, TypeError)) as caught:
                await call(rig.queue)
            words.append((caught.type, str(caught.value)))
            assert await rig.queue.queues() == []
    assert words[0] == words[1]


async def test_what_can_be_given_without_tracing_can_be_given_with_it(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        view: Any = memoryview(b"abc")
        pairs: Any = [("to", "ada")]
        one = await rig.queue.enqueue("q", view, headers=pairs)
        (two,) = await rig.queue.enqueue_many("q", [bytearray(b"abc")])  # type: ignore[list-item]
        for added in (one, two):
            assert (await rig.queue.payload(added.job_id)).payload == b"abc"
        again = [await rig.queue.enqueue("q", b"", unique_key="k", priority=7) for _ in range(2)]
        assert [job.created for job in again] == [True, False]
        assert [ours(span)["ledgerq.created"] for span in spans.named("enqueue q")] == [True, True, False]


async def test_a_refused_enqueue_is_an_error_with_its_exception(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        with pytest.raises(InvalidArgument):
            await rig.queue.enqueue("q", b"", priority=-1)
        span = spans.one("enqueue q")
        assert span.status.status_code is StatusCode.ERROR
        assert ours(span)["error.type"] == "ledgerq.eventlog.error_root.InvalidArgument"
        assert [event.name for event in span.events] == ["exception"]


# ---------------------------------------------------------------------- handling


async def test_a_try_is_a_consumer_span_that_links_to_the_enqueue(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"12345")
        with spans.tracer.start_as_current_span("the program"):
            await run_all(rig, well, name="host-1")
        sent, span = spans.one("enqueue q"), spans.one("process q")
        assert (span.kind, span.parent, links(span)) == (SpanKind.CONSUMER, None, [ids(sent)])
        assert ids(span)[0] != ids(sent)[0]
        assert span.status.status_code is StatusCode.UNSET
        assert [event.name for event in span.events] == ["handled"]
        assert ours(span) == {
            "messaging.system": "ledgerq",
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": "q",
            "messaging.message.id": added.job_id,
            "messaging.message.body.size": 5,
            "messaging.client.id": "host-1",
            "ledgerq.attempt": 1,
            "ledgerq.offset": (await rig.queue.get(added.job_id)).claim_offset,
            "ledgerq.outcome": "done",
        }


async def test_in_the_same_trace_a_try_is_a_child_too(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")
        await run_all(rig, well, same_trace=True)
        sent, span = spans.one("enqueue q"), spans.one("process q")
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == ids(sent)
        assert (ids(span)[0], links(span)) == (ids(sent)[0], [ids(sent)])


async def test_a_worker_traces_a_queue_that_is_not_traced(spans: Spans) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        with spans.tracer.start_as_current_span("the program"):
            await run_all(rig, well, tracer_provider=spans.provider)
        assert spans.names() == ["process q", "the program"]
        assert spans.one("process q").parent is None
        assert links(spans.one("process q")) == []


async def test_every_try_links_to_the_same_enqueue(spans: Spans) -> None:
    async def handle(job: JobContext) -> None:
        if job.attempt < 3:
            raise ValueError("odd")

    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")
        worker = Worker(rig.queue)
        worker.handler("q")(handle)
        async with working(worker):
            for _ in range(3):
                await rig.advance(60)
        tries = spans.named("process q")
        assert [ours(span)["ledgerq.attempt"] for span in tries] == [1, 2, 3]
        assert [ours(span)["ledgerq.outcome"] for span in tries] == ["retry", "retry", "done"]
        assert [links(span) for span in tries] == [[ids(spans.one("enqueue q"))]] * 3
        assert len({ids(span)[0] for span in tries}) == 3


async def fails(job: JobContext) -> None:
    """A fault."""
    raise ValueError("odd")


async def gives_up(job: JobContext) -> None:
    """No use."""
    raise Dead("no such address")


async def asks(job: JobContext) -> None:
    """Later."""
    raise Retry(60, "not yet")


async def hangs(job: JobContext) -> None:
    """No end."""
    await asyncio.Event().wait()


class Mute(Exception):
    """An error whose text can't be made."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


async def is_mute(job: JobContext) -> None:
    """A fault whose text can't be made."""
    raise Mute


@pytest.mark.parametrize(
    ("function", "max_attempts", "timeout", "outcome", "error_type", "description", "events"),
    [
        (fails, 3, None, "retry", "ValueError", "ValueError: odd", ["exception"]),
        (fails, 1, None, "dead", "ValueError", "ValueError: odd", ["exception"]),
        (gives_up, 3, None, "dead", "ledgerq.worker.outcomes.Dead", "Dead: no such address", ["exception"]),
        (asks, 3, None, "retry", None, None, []),
        (asks, 1, None, "dead", "ledgerq.worker.outcomes.Retry", "Retry: not yet", []),
        (hangs, 3, 5.0, "retry", "timeout", None, []),
        (hangs, 1, 5.0, "dead", "timeout", None, []),
    ],
)
async def test_how_a_try_ended_is_in_its_span(
    spans: Spans,
    function: Callable[[JobContext], Any],
    max_attempts: int,
    timeout: float | None,
    outcome: str,
    error_type: str | None,
    description: str | None,
    events: Sequence[str],
) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"", max_attempts=max_attempts)
        await run_all(rig, function, timeout=timeout)
        span = spans.one("process q")
        assert (ours(span)["ledgerq.outcome"], ours(span).get("error.type")) == (outcome, error_type)
        assert span.status.status_code is (StatusCode.UNSET if error_type is None else StatusCode.ERROR)
        assert span.status.description == description
        assert [event.name for event in span.events] == events
        if "exception" in events:
            assert "Traceback" in str((span.events[0].attributes or {})["exception.stacktrace"])


async def test_a_fault_that_cannot_be_told_is_settled_all_the_same(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"")
        await run_all(rig, is_mute)
        assert (await rig.queue.get(added.job_id)).state == "scheduled"
        assert spans.one("process q").status.status_code is StatusCode.ERROR


async def test_a_cancelled_a_released_and_a_lost_try(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        first, second, third = [await rig.queue.enqueue("q", payload) for payload in (b"1", b"2", b"3")]
        stage = Stage()
        worker = Worker(rig.queue, grace=0)
        worker.handler("q")(stage)
        async with working(worker):
            held = {claim.job_id: claim for claim in worker._slots.held}
            await rig.queue.cancel(first.job_id, **WHO)
            await rig.queue.ack(held[second.job_id])
            await settle()
        found = {ours(span)["messaging.message.id"]: span for span in spans.named("process q")}
        outcomes = [ours(found[job.job_id])["ledgerq.outcome"] for job in (first, second, third)]
        assert outcomes == ["cancelled", "lost", "released"]
        assert found[first.job_id].status.status_code is StatusCode.UNSET
        assert found[third.job_id].status.status_code is StatusCode.UNSET


async def test_a_lost_claim_is_an_error(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")

        async def handle(job: JobContext) -> None:
            await rig.queue.nack(job.claim, "e", dead=True)

        await run_all(rig, handle)
        span = spans.one("process q")
        assert (ours(span)["ledgerq.outcome"], ours(span)["error.type"]) == ("lost", "claim_lost")
        assert span.status.status_code is StatusCode.ERROR


async def test_when_the_queue_fails_what_came_of_a_try_is_unknown(spans: Spans) -> None:
    rig = Rig(tracer_provider=spans.provider)
    await rig.open()
    await rig.queue.enqueue("q", b"")
    stage = Stage()
    worker = Worker(rig.queue)
    worker.handler("q")(stage)
    running = asyncio.create_task(worker.run(signals=False))
    await until(lambda: bool(stage.started))
    rig.faults.spoil("sync:before", OutcomeUnknown("the disk hangs"))
    stage.cue.set()
    with pytest.raises(OutcomeUnknown):
        await running
    assert ours(spans.one("process q"))["ledgerq.outcome"] == "unknown"
    with pytest.raises((OutcomeUnknown, ClaimLost)):
        await rig.queue.enqueue("q", b"")
    await rig.queue.close()


async def test_no_span_for_a_claim_that_is_given_back_unused(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue_many("q", [b"runs", b"waits"])
        worker = fetching_ahead(Worker(rig.queue, concurrency=1, grace=0), 1)
        worker.handler("q")(Stage())
        async with working(worker):
            assert len(worker._slots.held) == 2
        assert [ours(span)["ledgerq.outcome"] for span in spans.named("process q")] == ["released"]


# ---------------------------------------------------------------------- the handler's context


async def test_an_async_handlers_spans_are_children_of_its_try(spans: Spans) -> None:
    async def handle(job: JobContext) -> None:
        await asyncio.sleep(0)
        with spans.tracer.start_as_current_span(f"inside {job.payload.decode()}"):
            await asyncio.sleep(0)

    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue_many("q", [b"a", b"b", b"c"])
        await run_all(rig, handle)
        tries = {ids(span) for span in spans.named("process q")}
        inside = [spans.one(f"inside {name}").parent for name in "abc"]
        assert {(parent.trace_id, parent.span_id) for parent in inside if parent is not None} == tries
        assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_threads_spans_are_children_of_its_try_and_so_is_what_it_returns(spans: Spans) -> None:
    async def later() -> None:
        with spans.tracer.start_as_current_span("later"):
            await asyncio.sleep(0)

    def handle(job: JobContext) -> Any:
        with spans.tracer.start_as_current_span("thread"):
            return later()

    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")
        worker = Worker(rig.queue)
        worker.handler("q")(handle)
        await worker.run(until_empty=True, signals=False)
        span = spans.one("process q")
        for name in ("thread", "later"):
            parent = spans.one(name).parent
            assert parent is not None
            assert (parent.trace_id, parent.span_id) == ids(span)


async def test_the_span_of_a_thread_that_goes_on_after_its_time_ends_when_the_job_is_settled(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")
        stage = ThreadStage()
        worker = Worker(rig.queue)
        worker.handler("q", timeout=5)(stage)
        async with working(worker):
            await stage.has_begun()
            await rig.advance(5)
            assert ours(spans.one("process q"))["error.type"] == "timeout"
            stage.cue.set()


async def test_a_job_that_a_handler_enqueues_belongs_to_its_trace(spans: Spans) -> None:
    async with Rig(tracer_provider=spans.provider) as rig:
        await rig.queue.enqueue("q", b"")

        async def handle(job: JobContext) -> None:
            await rig.queue.enqueue("next", b"")

        await run_all(rig, handle)
        assert ids(spans.one("enqueue next"))[0] == ids(spans.one("process q"))[0]


async def test_log_records_about_a_try_are_written_in_its_context(
    spans: Spans, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []

    class Correlating(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            context = trace.get_current_span().get_span_context()
            seen.append((context.trace_id, context.span_id))

    handler = Correlating()
    logging.getLogger("ledgerq.worker").addHandler(handler)
    try:
        async with Rig(tracer_provider=spans.provider) as rig:
            await rig.queue.enqueue("q", b"")
            await run_all(rig, fails)
    finally:
        logging.getLogger("ledgerq.worker").removeHandler(handler)
    assert seen == [ids(spans.one("process q"))]


# ---------------------------------------------------------------------- without it


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), ProxyTracerProvider()])
async def test_without_an_sdk_there_are_no_headers_and_no_context(provider: Any) -> None:
    seen: list[object] = []

    async def handle(job: JobContext) -> None:
        seen.append((job.headers, trace.get_current_span()))

    async with Rig(tracer_provider=provider) as rig:
        await rig.queue.enqueue("q", b"")
        await rig.queue.enqueue_many("q", [b"", NewJob(b"", headers={"to": "ada"})])
        await run_all(rig, handle)
    assert seen == [({}, trace.INVALID_SPAN), ({}, trace.INVALID_SPAN), ({"to": "ada"}, trace.INVALID_SPAN)]


async def test_a_span_that_is_not_sampled_passes_its_context_on() -> None:
    spans = Spans(sampler=ALWAYS_OFF)
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"")
        headers = (await rig.queue.payload(added.job_id)).headers
        assert headers is not None
        assert not int(headers["traceparent"][-2:], 16) & 1
        await run_all(rig, fails)
        assert spans.names() == []
        assert (await rig.queue.get(added.job_id)).state == "scheduled"


async def test_what_is_no_provider_is_refused_before_anything_is_opened() -> None:
    no_provider: Any = "console"
    with pytest.raises(InvalidArgument, match="TracerProvider of OpenTelemetry, not 'console'"):
        Queue.open(tracer_provider=no_provider)
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="TracerProvider of OpenTelemetry, not 'console'"):
            Worker(rig.queue, tracer_provider=no_provider)


async def test_a_queue_that_is_not_traced_is_a_plain_queue_whatever_is_installed() -> None:
    async with Rig() as rig:
        assert type(rig.queue) is Queue
        assert Worker(rig.queue)._tracer is None


class Broken(SpanProcessor):
    """A processor that raises whenever it is asked."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Raise."""
        raise RuntimeError("broken at the start")

    def on_end(self, span: Any) -> None:
        """Raise."""
        raise RuntimeError("broken at the end")


class BrokenAtTheEnd(Broken):
    """One that raises at the end only."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Nothing."""


@pytest.mark.parametrize("processor", [Broken(), BrokenAtTheEnd()])
async def test_tracing_that_fails_takes_no_job_with_it(processor: Any, caplog: pytest.LogCaptureFixture) -> None:
    provider = TracerProvider()
    provider.add_span_processor(processor)
    async with Rig(tracer_provider=provider) as rig:
        added = [await rig.queue.enqueue("q", b""), *await rig.queue.enqueue_many("q", [b"", b""])]
        await run_all(rig, well)
        assert [(await rig.queue.get(job.job_id)).state for job in added] == ["done"] * 3
    told = [record for record in caplog.records if vars(record).get("ledgerq_event") == "tracing_failed"]
    assert len(told) == 2  # once for enqueueing, once for handling


async def test_a_propagator_that_fails_takes_no_job_with_it(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **more: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(propagate, "inject", broken)
    monkeypatch.setattr(propagate, "extract", broken)
    async with Rig(tracer_provider=spans.provider) as rig:
        added = await rig.queue.enqueue("q", b"", headers={"traceparent": OWN})
        await run_all(rig, well)
        assert (await rig.queue.get(added.job_id)).state == "done"


BLOCKED = """
    import asyncio, builtins, sys

    tries = []
    real = builtins.__import__

    def watched(name, *args, **more):
        if name.split(".")[0] == "opentelemetry":
            tries.append(name)
        return real(name, *args, **more)

    builtins.__import__ = watched
    sys.modules["opentelemetry"] = None
    from ledgerq import InvalidArgument, NewJob, Queue, Worker

    async def main():
        async with Queue.open() as queue:
            worker = Worker(queue)

            @worker.handler("q")
            async def handle(job):
                done.append(job.payload)

            done = []
            await queue.enqueue("q", b"1")
            await queue.enqueue_many("q", [b"2", NewJob(b"3")])
            await worker.run(until_empty=True, signals=False)
            assert sorted(done) == [b"1", b"2", b"3"]
            assert tries == [], tries
        try:
            async with Queue.open(tracer_provider=object()) as queue:
                pass
        except InvalidArgument as error:
            print(error)
        assert len(tries) == 1, tries
        async with Queue.open() as queue:
            try:
                Worker(queue, tracer_provider=object())
            except InvalidArgument as error:
                print(error)
        assert len(tries) == 2, tries

    asyncio.run(main())
"""


@pytest.mark.proof
def test_without_opentelemetry_everything_works_and_nobody_looks_for_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tracer_provider needs OpenTelemetry: pip install 'ledgerq[otel]'"] * 2
