"""Metrics of queues and their workers, on a port of their own or mounted in an existing web application.

    metrics = Metrics(queue, worker=worker)
    server = await metrics.serve(port=9464)

The metrics are listed in projections/metrics/catalogue.py; the pages are made in asgi.py.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.projections.metrics.counters import DEFAULT_LIMIT_QUEUES
from ledgerq.worker.engine.takeover import Opening
from ledgerq.worker.metrics.asgi import MetricsApp
from ledgerq.worker.metrics.readiness import QueueReadiness
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker

if TYPE_CHECKING:
    from ledgerq.worker.metrics.server import MetricsServer

__all__ = ["DEFAULT_PORT", "Merged", "Metrics"]

DEFAULT_PORT: Final = 9464


class Metrics:
    """The metrics and the readiness of these queues, and of the workers in this process.

    `worker`: one worker of these queues, or several. `registry`: a Prometheus registry to serve, to which these metrics
    are added (None: one of its own, with nothing else in it). With several queues the label `store` of each sample
    names its queue: the queue's location, or what `names` gives for each queue in turn; with several workers the label
    `worker` holds the worker's number, from 1 on. `limit`: see `Queue.collector`.

    Make it on the event loop that the queues are open on. Raises `InvalidArgument`.
    """

    def __init__(
        self,
        *queues: Queue,
        worker: Worker | Sequence[Worker] | None = None,
        registry: CollectorRegistry | None = None,
        names: Sequence[str] | None = None,
        limit: int = DEFAULT_LIMIT_QUEUES,
    ) -> None:
        workers = [] if worker is None else [*worker] if isinstance(worker, Sequence) else [worker]
        stores = _stores(queues, names)
        self._queues = [queue.collector(limit) for queue in queues]
        self._readiness = [QueueReadiness(queue) for queue in queues]
        self._registry = CollectorRegistry(auto_describe=False) if registry is None else registry
        several = len(queues) > 1
        labels = [{"store": store} if several else {} for store in stores]
        parts: list[tuple[dict[str, str], Collector]] = [*zip(labels, self._queues, strict=True)]
        self._collector = Merged([*parts, *_of_workers(workers, queues, labels)])
        self._registry.register(self._collector)
        self._is_registered = True
        self.asgi = MetricsApp(self._registry, self.reasons, self._refresh)
        """The pages as an ASGI application, to be mounted in another one."""

    async def reasons(self) -> list[str]:
        """The reasons why this process is not ready, one line each, as on `/readyz`."""
        found = await asyncio.gather(*(readiness.reasons() for readiness in self._readiness))
        return [reason for reasons in found for reason in reasons]

    async def _refresh(self) -> None:
        await asyncio.gather(*(collector.refresh() for collector in self._queues))

    def serve(self, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> "Opening[MetricsServer]":
        """Serve `/metrics`, `/healthz` and `/readyz` on this event loop: `await` it, or use `async with`.

        The result listens already; `await server.close()` ends it. Port 0 is any free one, `server.port` is its number.

        There is no authentication: the default is reachable from this machine only. Give another host (`"0.0.0.0"`,
        `"::"`) only where the network restricts access; the pages contain the names of queues and the store's URL.

        Raises `InvalidArgument` when that address can't be listened on.
        """

        async def make() -> "MetricsServer":
            # The server is imported only where it is used.
            from ledgerq.worker.metrics.server import start_server

            return await start_server(self.asgi, host, port)

        return Opening(make)

    def close(self) -> None:
        """Remove these metrics from the registry; a second call does nothing. Servers are closed on their own."""
        if self._is_registered:
            self._is_registered = False
            self._registry.unregister(self._collector)
            for readiness in self._readiness:
                readiness.probe.close()


class Merged(Collector):
    """Several collectors as one: families of one name become one family, the given labels distinguish the samples."""

    def __init__(self, parts: Sequence[tuple[dict[str, str], Collector]]) -> None:
        """Merge collectors, each with the labels that its samples get besides their own."""
        self._parts = parts

    def collect(self) -> list[Metric]:
        """The metrics as of now."""
        return _merge((labels, collector.collect()) for labels, collector in self._parts)

    def describe(self) -> list[Metric]:
        """The names alone, for the registry; a collector without `describe` is collected for them."""
        return _merge((labels, getattr(part, "describe", part.collect)()) for labels, part in self._parts)


def _merge(parts: Iterable[tuple[dict[str, str], Iterable[Metric]]]) -> list[Metric]:
    families: dict[str, Metric] = {}
    for labels, found in parts:
        for family in found:
            merged = families.get(family.name)
            if merged is None:
                merged = families[family.name] = Metric(family.name, family.documentation, family.type, family.unit)
            if labels:
                merged.samples += [sample._replace(labels=sample.labels | labels) for sample in family.samples]
            else:
                merged.samples += family.samples
    return [*families.values()]


def _stores(queues: Sequence[Queue], names: Sequence[str] | None) -> list[str]:
    if not queues or not all(isinstance(queue, Queue) for queue in queues):
        raise InvalidArgument(f"metrics are of queues, at least one, not of {queues!r}")
    stores = [queue.location for queue in queues] if names is None else [*names]
    if len(stores) != len(queues) or len(set(stores)) != len(stores):
        raise InvalidArgument(f"{len(queues)} queues need as many different names, not: {', '.join(stores)}")
    return stores


def _of_workers(
    workers: Sequence[Worker], queues: Sequence[Queue], labels: list[dict[str, str]]
) -> list[tuple[dict[str, str], Collector]]:
    """Each worker's collector, with the labels of its queue object and, of several workers, its number."""
    parts: list[tuple[dict[str, str], Collector]] = []
    for number, worker in enumerate(workers, 1):
        if not isinstance(worker, Worker):
            raise InvalidArgument(f"worker is a Worker or several, not {worker!r}")
        found = [own for own, queue in zip(labels, queues, strict=True) if queue is worker.queue]
        if not found:
            raise InvalidArgument("the worker works on another queue object than those given")
        own = {"worker": str(number)} if len(workers) > 1 else {}
        parts.append((found[0] | own, worker.collector()))
    return parts
