"""SlateDB's own numbers as metrics of the process that writes the store."""

from collections.abc import Callable
from typing import Final

from ledgerq.eventlog.slate_metrics import SlateHistogram, SlateReading
from ledgerq.projections.metrics import Families
from ledgerq.projections.metrics_catalogue import CATALOGUE

__all__ = ["SlateSource"]

_PREFIX: Final = "ledgerq_slatedb_"
_SPECS: Final = {
    spec.name.removeprefix(_PREFIX).removesuffix("_total"): spec
    for spec in CATALOGUE.values()
    if spec.name.startswith(_PREFIX)
}


class SlateSource:
    """What `read` gives at each scrape, under the names of the catalogue."""

    names = tuple(spec.name for spec in _SPECS.values())

    def __init__(self, read: Callable[[], SlateReading]) -> None:
        self._read = read

    def show(self, families: Families) -> None:
        """The numbers as of now."""
        for (name, values), number in self._read().items():
            spec = _SPECS[name]
            labels = dict(zip(spec.labels, values, strict=True))
            if isinstance(number, SlateHistogram):
                families.add_histogram(spec.name, number.bounds, number.counts, number.sum, **labels)
            else:
                families.add(spec.name, number, **labels)
