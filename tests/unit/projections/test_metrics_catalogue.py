"""The catalogue: names and units by Prometheus's and OpenMetrics' rules, and nothing is shown that isn't in it."""

import re
from pathlib import Path

import pytest

from ledgerq import MemoryStore, Queue, Worker
from ledgerq.projections.metrics.catalogue import CATALOGUE, MetricSpec, markdown

SPECS = list(CATALOGUE.values())
every_metric = pytest.mark.parametrize("spec", SPECS, ids=[spec.name for spec in SPECS])
# What Prometheus's guide calls base units, and those that must not stand in a name.
UNITS = {"", "seconds", "bytes"}
NOT_BASE = re.compile(r"_(ms|milliseconds|minutes|hours|days|kb|mb|kib|mib|percent)(_|$)")


@every_metric
def test_a_name_says_type_and_unit(spec: MetricSpec) -> None:
    assert re.fullmatch(r"ledgerq_[a-z0-9]+(_[a-z0-9]+)*", spec.name)
    assert (spec.type == "counter") == spec.name.endswith("_total")
    assert (spec.type == "info") == spec.name.endswith("_info")
    assert not re.search(r"_(count|sum|bucket|created)$", spec.name)
    assert spec.unit in UNITS
    assert spec.family.endswith(spec.unit)
    assert not NOT_BASE.search(spec.name)


@every_metric
def test_labels_are_few_and_not_those_that_prometheus_sets(spec: MetricSpec) -> None:
    assert len(spec.labels) <= 2
    assert not {"le", "quantile", "job", "instance", "store", "worker"} & set(spec.labels)
    assert all(re.fullmatch(r"[a-z_]+", label) for label in spec.labels)


@every_metric
def test_the_help_says_what_it_is_and_what_to_do(spec: MetricSpec) -> None:
    assert spec.meaning.endswith(".")
    assert spec.advice.endswith(".")
    assert len(spec.advice) > 15
    assert spec.help == f"{spec.meaning} {spec.advice}"
    assert "|" not in spec.help  # it stands in a table
    assert "\n" not in spec.help


def test_each_kind_and_family_stands_once() -> None:
    assert len({spec.family for spec in SPECS}) == len(SPECS)
    groups = [spec.group for spec in SPECS]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index), "what belongs together stands together"


async def test_the_collectors_tell_all_of_the_catalogue_and_nothing_else(tmp_path: Path) -> None:
    async with Queue.open(str(tmp_path)) as queue:
        described = [*queue.collector().describe(), *Worker(queue).collector().describe()]
        assert sorted(family.name for family in described) == sorted(spec.family for spec in SPECS)
        for family in described:
            spec = next(spec for spec in SPECS if spec.family == family.name)
            assert (family.type, family.unit, family.documentation) == (spec.type, spec.unit, spec.help)
            assert not family.samples
    async with Queue.open(store=MemoryStore()) as queue:
        names = {family.name for family in queue.collector().describe()}
        assert names == {s.family for s in SPECS if s.origin != "worker" and not s.name.startswith("ledgerq_slatedb_")}


def test_the_table_has_a_line_for_each() -> None:
    head, rule, *lines = markdown().splitlines()
    assert head.count("|") == rule.count("|") == 6
    assert [line.split("`")[1] for line in lines] == list(CATALOGUE)
    assert all(line.count("|") == 6 for line in lines)
