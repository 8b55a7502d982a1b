"""The collector of metrics for Prometheus: it gathers the samples of its sources at the moment of a scrape.

A source puts samples into families; names, types, units and help texts come from the catalogue. What is durable is
shown by `CountersSource` (counters.py), for the queue's process and the exporter alike; gauges of the process are in
`ledgerq.worker.metrics.queue_metrics`. Collecting awaits nothing and may happen in any thread.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final, Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

from ledgerq.eventlog.slate.metrics import SlateHistogram, SlateReading
from ledgerq.projections.metrics.catalogue import CATALOGUE, MetricSpec

__all__ = ["Families", "LedgerCollector", "SlateSource", "Source", "histogram_samples"]

_INF: Final = "+Inf"
_SLATE_PREFIX: Final = "ledgerq_slatedb_"
_SLATE_SPECS: Final = {
    spec.name.removeprefix(_SLATE_PREFIX).removesuffix("_total"): spec
    for spec in CATALOGUE.values()
    if spec.name.startswith(_SLATE_PREFIX)
}
Buckets = Sequence[tuple[str, int, Exemplar | None]]


class Source(Protocol):
    """A source of samples."""

    @property
    def names(self) -> Sequence[str]:
        """The names, as in the catalogue, of the metrics that this source may show."""

    def show(self, families: "Families") -> None:
        """Put the samples as of now into `families`; called from any thread, awaits nothing."""


class Families:
    """The families of one scrape, in the order of the catalogue."""

    def __init__(self, names: Sequence[str]) -> None:
        """Empty families for these metrics."""
        wanted = set(names)
        self._families = {name: _family(spec) for name, spec in CATALOGUE.items() if name in wanted}

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add one sample of a counter or a gauge, or of an info, whose value is 1."""
        self._families[name].samples.append(Sample(name, labels, value))

    def add_histogram(
        self, name: str, bounds: Sequence[float], counts: Sequence[int], total: float, **labels: str
    ) -> None:
        """Add a histogram, given each bucket's count (not cumulative; one more than there are bounds) and the sum."""
        buckets = [(le, count, None) for le, count in zip(bucket_names(tuple(bounds)), counts, strict=True)]
        self.extend(name, histogram_samples(name, labels, buckets, total))

    def extend(self, name: str, samples: Sequence[Sample]) -> None:
        """Add samples that were made before."""
        self._families[name].samples.extend(samples)

    def all(self) -> Iterator[Metric]:
        """Every family; one without samples too, so that its type is known."""
        yield from self._families.values()


def _family(spec: MetricSpec) -> Metric:
    return Metric(spec.family, spec.help, spec.type, spec.unit)


@cache
def bucket_names(bounds: tuple[float, ...]) -> tuple[str, ...]:
    """The values of the label `le`."""
    return (*(str(floatToGoString(bound)) for bound in bounds), _INF)  # type: ignore[no-untyped-call]


def histogram_samples(name: str, labels: dict[str, str], buckets: Buckets, total: float) -> list[Sample]:
    """The samples of one histogram; each bucket is (le, how many are in it, exemplar), in order."""
    bucket_name, below = f"{name}_bucket", 0
    samples: list[Sample] = []
    for le, count, exemplar in buckets:
        below += count
        samples.append(Sample(bucket_name, {**labels, "le": le}, below, None, exemplar))
    return [*samples, Sample(f"{name}_count", labels, below), Sample(f"{name}_sum", labels, total)]


class LedgerCollector(Collector):
    """The collector to register, `REGISTRY.register(queue.collector())`; `Queue.collector`, `Worker.collector` make it.

    `before` is called at the beginning of each scrape: it may bring the sources up to date, if that takes no time.
    """

    def __init__(self, *sources: Source, before: Callable[[], None] = lambda: None) -> None:
        self._sources = sources
        self._names = [name for source in sources for name in source.names]
        self._before = before

    def describe(self) -> list[Metric]:
        """The families without samples: all that a registry needs to know when this is registered."""
        return list(Families(self._names).all())

    def collect(self) -> list[Metric]:
        """The metrics as of now."""
        self._before()
        families = Families(self._names)
        for source in self._sources:
            source.show(families)
        return list(families.all())


class SlateSource:
    """SlateDB's own metrics, which `read` gives at each scrape, under the names of the catalogue."""

    names = tuple(spec.name for spec in _SLATE_SPECS.values())

    def __init__(self, read: Callable[[], SlateReading]) -> None:
        self._read = read

    def show(self, families: Families) -> None:
        """Show the numbers as of now."""
        for (name, values), number in self._read().items():
            spec = _SLATE_SPECS[name]
            labels = dict(zip(spec.labels, values, strict=True))
            if isinstance(number, SlateHistogram):
                families.add_histogram(spec.name, number.bounds, number.counts, number.sum, **labels)
            else:
                families.add(spec.name, number, **labels)
