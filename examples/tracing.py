"""Spans for enqueueing and for each try, with OpenTelemetry (the extra `ledgerq[otel]`, and an SDK)."""

import asyncio

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ledgerq import JobContext, Queue, Worker


async def main() -> None:
    exporter = InMemorySpanExporter()  # an OTLPSpanExporter sends them somewhere
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with Queue.open("memory:///", tracer_provider=provider) as queue:
        worker = Worker(queue)

        @worker.handler("mail")
        async def send(job: JobContext) -> None: ...

        await queue.enqueue("mail", b"hello")
        await worker.run(until_empty=True)
    for span in exporter.get_finished_spans():
        print(span.name, "links to", len(span.links))


asyncio.run(main())
