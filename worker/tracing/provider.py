"""The only importer of OpenTelemetry, used only when a tracer provider is given.

It imports spans.py, which describes what is traced, and traced_enqueue.py.
"""

from typing import TYPE_CHECKING

from ledgerq.eventlog.errors import InvalidArgument

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from ledgerq.worker.engine.core import Core
    from ledgerq.worker.engine.enqueue import Enqueuer
    from ledgerq.worker.execution import Tracer

__all__ = ["check_provider", "traced_enqueuer", "try_tracer"]


def check_provider(provider: "TracerProvider") -> None:
    """Raise `InvalidArgument` for a value that is no tracer provider, and where OpenTelemetry is not installed."""
    try:
        import opentelemetry.trace  # noqa: F401
    except ImportError as error:
        raise InvalidArgument("tracer_provider needs OpenTelemetry: pip install 'ledgerq[otel]'") from error
    if not callable(getattr(provider, "get_tracer", None)):
        raise InvalidArgument(f"tracer_provider is a TracerProvider of OpenTelemetry, not {provider!r}")


def traced_enqueuer(core: "Core", provider: "TracerProvider") -> "Enqueuer":
    """The enqueuer with a span around each call."""
    from ledgerq.worker.tracing.traced_enqueue import TracedEnqueuer

    return TracedEnqueuer(core, provider)


def try_tracer(
    queue: object, provider: "TracerProvider | None", *, worker: str | None, same_trace: bool
) -> "Tracer | None":
    """The tracer of a worker's tries; None when neither it nor its queue was given a provider."""
    if provider is None:
        provider = getattr(queue, "tracer_provider", None)
    if provider is None:
        return None
    check_provider(provider)
    from ledgerq.worker.tracing.spans import TryTracer

    return TryTracer(provider, worker=worker, same_trace=same_trace)
