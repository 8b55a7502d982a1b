"""OpenTelemetry: a span for each enqueue and for each try, joined by the trace context in the job's headers.

It comes with `ledgerq[otel]` and is switched on by `Queue.open(tracer_provider=...)`, for the queue and its workers.
Without that this module isn't imported, OpenTelemetry is not searched for, and no call goes through a wrapper.

The names follow OpenTelemetry's semantic conventions for messaging spans (version 1.27 and later, "development" still):

- `enqueue QUEUE`, a PRODUCER span of type `send`, lasts until the job is durable. Its context goes into the job's
  headers by the propagator that is set globally: `traceparent`, `tracestate` and `baggage` by default. `enqueue_many`
  has one span, whose context goes to each of its jobs. A context that the caller put into the headers is kept as it is,
  and linked to.
- `process QUEUE`, a CONSUMER span of type `process`, is one try: from the handler's beginning (the handler runs in its
  context, in a thread too) until its outcome is durable, with the event `handled` in between. It links to the span
  that enqueued the job, and all tries of a job link to the same one. A link, not a parent, as the conventions prefer: a
  job may run days later and several times, and a trace with such gaps is neither sampled nor read well.
  `Worker(same_trace=True)` makes it a child as well, for those whose jobs follow at once.

`ledgerq.outcome` is the outcome of a try. Its status is an error when the handler failed, timed out, raised `Dead`, or
lost its claim; a `Retry` that was asked for, a cancellation and an orderly end of the worker are no errors.

The headers with the context are part of the payload record, under its digest, and deleted with it; the log holds none
of it. They count for `max_payload_bytes`, but make no job too large: where the limit leaves no space the context is
left out.
"""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, ParamSpec, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from ledgerq.eventlog.runtime.log_records import about, logger
from ledgerq.eventlog.runtime.process import package_version
from ledgerq.worker.claims import Claim, EnqueueResult
from ledgerq.worker.engine.large_payloads import Stream
from ledgerq.worker.job_logging import Outcome
from ledgerq.worker.options import NewJob
from ledgerq.worker.outcomes import Retry, plain_text

__all__ = ["Sender", "Sending", "Try", "TryTracer"]

_SYSTEM: Final = "ledgerq"
# The SDK keeps that many by default.
_MAX_LINKS: Final = 128
_AT_ONCE: Final = 50

_log = logger("worker")

Headers = Mapping[str, str] | None
P = ParamSpec("P")
T = TypeVar("T")


class _Careful:
    """A guard around the user's tracing, whose errors are logged and dropped: they must not fail a job."""

    def __init__(self) -> None:
        self._told = False

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function; None when it raised, which is logged the first time."""
        try:
            return function(*args, **kwargs)
        except Exception as error:
            level = logging.DEBUG if self._told else logging.WARNING
            self._told = True
            _log.log(level, "tracing failed, jobs go on without it", exc_info=error, extra=about("tracing_failed"))
            return None


class Sending:
    """One call of `enqueue` or `enqueue_many`: `carrier` are the headers that it adds."""

    def __init__(self, span: Span, carrier: dict[str, str], careful: _Careful) -> None:
        self.carrier = carrier
        self._span = span
        self._careful = careful

    def without_context(self) -> None:
        """Record that the context was left out, since the limit leaves no space beside the payload."""
        self._careful.call(self._span.add_event, "the trace context did not fit beside the payload")

    def end(self, error: BaseException | None = None, result: EnqueueResult | None = None) -> None:
        """End the span: the jobs are durable (`result`: the one job), or the call raised."""
        self._careful.call(self._describe, error, result)
        self._careful.call(self._span.end)

    def _describe(self, error: BaseException | None, result: EnqueueResult | None) -> None:
        if not self._span.is_recording():
            return
        if result is not None:
            self._span.set_attributes({"messaging.message.id": result.job_id, "ledgerq.created": result.created})
        if error is not None:
            _fail(self._span, _name_of(error), f"{type(error).__name__}: {plain_text(error)}")
        if isinstance(error, Exception):
            self._span.record_exception(error)


class Sender:
    """The maker of spans of enqueueing."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = _tracer(provider)
        self._careful = _Careful()

    def one(self, queue: str, payload: bytes | Stream, headers: Headers) -> Sending | None:
        """Begin the span of `enqueue`; None when it can't be traced."""
        return self._careful.call(lambda: self._begin("enqueue", queue, [headers], _size_of(payload)))

    def many(self, queue: str, jobs: Sequence[bytes | NewJob]) -> Sending | None:
        """Begin the span of `enqueue_many`; None when it can't be traced."""
        return self._careful.call(
            lambda: self._begin(
                "enqueue_many",
                queue,
                (job.headers if isinstance(job, NewJob) else None for job in jobs),
                {"messaging.batch.message_count": len(jobs)},
            )
        )

    def carry(self, headers: Headers, carrier: dict[str, str]) -> Headers:
        """Headers with the context of the span; without it where they carry one, or are none that a job can have."""
        if not headers:
            return carrier
        carrying = self._careful.call(_merged, headers, carrier)
        return headers if carrying is None else carrying

    async def carry_all(self, jobs: Sequence[bytes | NewJob], carrier: dict[str, str]) -> list[bytes | NewJob]:
        """The jobs with the context of the span in their headers; wrong jobs are left as they are and refused later.

        A few at a time: many would hold the event loop for a tenth of a second.
        """
        carrying: list[bytes | NewJob] = []
        for at, job in enumerate(list(jobs)):
            if at and at % _AT_ONCE == 0:
                await asyncio.sleep(0)
            if isinstance(job, NewJob):
                carrying.append(job.model_copy(update={"headers": self.carry(job.headers, carrier)}))
            else:
                carrying.append(NewJob.model_construct(payload=job, headers=carrier))
        return carrying

    def _begin(self, operation: str, queue: str, headers: Iterable[Headers], more: dict[str, int]) -> Sending:
        own: dict[tuple[int, int], trace.SpanContext] = {}
        creates = False
        for given in headers:
            context = _own_context(given) if given else None
            if context is None:
                creates = True
            elif len(own) < _MAX_LINKS:
                own[context.trace_id, context.span_id] = context
        attributes: dict[str, str | int] = {
            "messaging.system": _SYSTEM,
            "messaging.operation.name": operation,
            "messaging.operation.type": "send",
            "messaging.destination.name": queue,
            **more,
        }
        span = self._tracer.start_span(
            f"{operation} {queue}",
            kind=SpanKind.PRODUCER if creates else SpanKind.CLIENT,
            links=[Link(context) for context in own.values()],
            attributes=attributes,
        )
        carrier: dict[str, str] = {}
        if creates and span.get_span_context().is_valid:
            propagate.inject(carrier, context=trace.set_span_in_context(span))
        return Sending(span, carrier, self._careful)


class Try:
    """The span of one try, and the context in which its handler runs."""

    def __init__(self, span: Span, context: contextvars.Context, careful: _Careful) -> None:
        self.context = context
        self._span = span
        self._careful = careful

    def handled(self, error: BaseException | None) -> None:
        """Record that the handler has ended."""
        if error is None:
            self._careful.call(self._span.add_event, "handled")
        elif not isinstance(error, (Retry, asyncio.CancelledError)):
            self._careful.call(self._span.record_exception, error)

    def end(self, outcome: Outcome, error: BaseException | None, timed_out: bool) -> None:
        """End the span of a try whose outcome is durable."""
        self._careful.call(self._describe, outcome, error, timed_out)
        self._careful.call(self._span.end)

    def _describe(self, outcome: Outcome, error: BaseException | None, timed_out: bool) -> None:
        span = self._span
        if not span.is_recording():
            return
        span.set_attribute("ledgerq.outcome", outcome)
        if outcome in ("done", "cancelled", "released") or (outcome == "retry" and isinstance(error, Retry)):
            return
        if outcome in ("lost", "unknown"):
            _fail(span, "claim_lost" if outcome == "lost" else "outcome_unknown")
        elif timed_out:
            _fail(span, "timeout")
        elif error is not None:
            _fail(span, _name_of(error), f"{type(error).__name__}: {plain_text(error)}")


class TryTracer:
    """The maker of spans of tries; `worker` is the name of the worker."""

    def __init__(self, provider: TracerProvider, *, worker: str | None, same_trace: bool) -> None:
        self._tracer = _tracer(provider)
        self._careful = _Careful()
        self._worker = worker
        self._same_trace = same_trace

    def begin(self, claim: Claim) -> Try | None:
        """Begin the span of a try, whose handler is about to run; None when that can't be traced or isn't wanted."""
        return self._careful.call(self._begin, claim)

    def _begin(self, claim: Claim) -> Try | None:
        # Not within the span that the worker happens to run in, which has nothing to do with this job.
        outside = trace.set_span_in_context(trace.INVALID_SPAN)
        sent = propagate.extract(claim.record.headers or {}, context=outside)
        origin = trace.get_current_span(sent).get_span_context()
        attributes: dict[str, str | int] = {
            "messaging.system": _SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.name": claim.queue,
            "messaging.message.id": claim.job_id,
            "messaging.message.body.size": len(claim.record.payload),
            "ledgerq.attempt": claim.attempt,
            "ledgerq.offset": claim.offset,
        }
        if self._worker is not None:
            attributes["messaging.client.id"] = self._worker
        span = self._tracer.start_span(
            f"process {claim.queue}",
            context=sent if self._same_trace else trace.set_span_in_context(trace.INVALID_SPAN, sent),
            kind=SpanKind.CONSUMER,
            links=[Link(origin)] if origin.is_valid else [],
            attributes=attributes,
        )
        if not span.get_span_context().is_valid:
            return None
        context = contextvars.copy_context()
        context.run(otel_context.attach, trace.set_span_in_context(span, sent))
        return Try(span, context, self._careful)


def _tracer(provider: TracerProvider) -> Tracer:
    return provider.get_tracer("ledgerq", package_version())


def _merged(headers: Mapping[str, str], carrier: dict[str, str]) -> Headers:
    given = dict(headers)
    return given if _own_context(given) is not None else carrier | given


def _own_context(headers: Mapping[str, str]) -> trace.SpanContext | None:
    """The context that the caller put there, by the propagator that is in force."""
    given = dict(headers)
    if propagate.get_global_textmap().fields.isdisjoint(given):
        return None
    context = propagate.extract(given, context=otel_context.Context())
    found = trace.get_current_span(context).get_span_context()
    return found if found.is_valid else None


def _fail(span: Span, error_type: str, description: str | None = None) -> None:
    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, description))


def _name_of(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _size_of(payload: bytes | Stream) -> dict[str, int]:
    """The size of a payload, which is not known of one that is read in pieces."""
    return {"messaging.message.body.size": len(payload)} if isinstance(payload, bytes | bytearray | memoryview) else {}
