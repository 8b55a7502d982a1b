"""Scrapes of collectors in this process, read as numbers."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

__all__ = ["exemplars", "numbers", "openmetrics"]


def numbers(*collectors: Collector) -> dict[str, float]:
    """Each sample's value, by its name and labels as the text format shows them."""
    registry = _registry(*collectors)
    lines = generate_latest(registry).decode().splitlines()
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}


def openmetrics(*collectors: Collector) -> list[Any]:
    """The families as a strict reader of OpenMetrics understands them."""
    text = generate_openmetrics(_registry(*collectors)).decode()  # type: ignore[no-untyped-call]
    return list(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def exemplars(collector: Collector, family: str) -> dict[tuple[str, str], Any]:
    """The exemplars of a family's buckets, by (queue, le)."""
    (found,) = (metric for metric in openmetrics(collector) if metric.name == family)
    return {(s.labels["queue"], s.labels["le"]): s.exemplar for s in found.samples if s.exemplar is not None}


def _registry(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return registry
