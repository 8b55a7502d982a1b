"""The files for Prometheus and Grafana: made from the tables, whole, and handed out by `ledgerq monitoring export`."""

import json
import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from ledgerq.projections.metrics.catalogue import CATALOGUE, markdown
from ledgerq.tools.monitoring import generate
from ledgerq.tools.monitoring.dashboard import GRID_COLUMNS, dashboard, metrics_of
from ledgerq.tools.monitoring.rules import ALERTS, RECORDS
from tests.support.cli_rig import Cli

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {"datasource", "job", "instance", "queue"}
BUILT_IN = {"__rate_interval"}
# What Prometheus knows of its targets by itself.
OF_PROMETHEUS = {"up"}


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression, with what it belongs to."""
    for panel in panels():
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((record.name, record.expr) for record in RECORDS)
    yield from ((alert.name, alert.expr) for alert in ALERTS)


# The files


@pytest.mark.parametrize("name", generate.NAMES[1:])
def test_the_files_are_what_the_tables_make(name: str) -> None:
    what_to_do = (
        f"tools/monitoring/files/{name} is not what the tables make: run python -m ledgerq.tools.monitoring.generate"
    )
    assert (generate.FOLDER / name).read_text("utf-8") == generate.made()[name], what_to_do


def test_every_file_of_the_folder_is_handed_out() -> None:
    there = {path.relative_to(generate.FOLDER).as_posix() for path in generate.FOLDER.rglob("*.*")}
    assert there == set(generate.NAMES)


# The dashboard


def test_panels_have_numbers_of_their_own_and_places_of_their_own() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    places = [panel["gridPos"] for panel in everything]
    for place in places:
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= GRID_COLUMNS - place["w"], place
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)
    # Whole lines: no panel leaves a hole to its right.
    covered = {(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
    assert len(covered) == GRID_COLUMNS * max(place["y"] + place["h"] for place in places)


def test_rows_are_those_that_an_operator_looks_for() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"]
    assert titles == ["Now", "Traffic", "Backlog", "Latency", "Failures", "Workers", "Log and store"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_tells_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"].split()) >= 5
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGH"[: len(panel["targets"])])
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"]
        assert panel["targets"][0]["format"] == "heatmap"
        return
    assert defaults["unit"]
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)


def test_variables_are_all_there_and_all_used() -> None:
    defined = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(dashboard())))
    # What a variable's own value says begins with $__ too.
    assert defined == VARIABLES
    assert used - {"__all"} == VARIABLES | BUILT_IN


def test_panels_of_queues_go_by_the_chosen_queues_and_all_by_the_chosen_process() -> None:
    for panel in panels():
        for target in panel["targets"]:
            for name, selector in re.findall(r"\b(ledgerq_\w+)\{([^}]*)\}", target["expr"]):
                spec = CATALOGUE[metrics_of(name)[0]]
                assert 'job=~"$job",instance=~"$instance"' in selector, (panel["title"], name)
                assert ("queue" in spec.labels) == ('queue=~"$queue"' in selector), (panel["title"], name)


# What is asked for


@pytest.mark.parametrize(("where", "expr"), list(expressions()), ids=[where for where, _ in expressions()])
def test_every_metric_and_label_is_in_the_catalogue(where: str, expr: str) -> None:
    records = {record.name for record in RECORDS}
    for name, selector in re.findall(r"(?<![\w:])((?:\w+:)?ledgerq_\w+(?::\w+)?|up)\b(\{[^}]*\})?", expr):
        if name in records | OF_PROMETHEUS:
            continue
        (metric,) = metrics_of(name)
        assert metric in CATALOGUE, f"{where}: there is no {name}"
        spec = CATALOGUE[metric]
        assert (name == metric) == (spec.type != "histogram"), f"{where}: {name} is a {spec.type}"
        labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)", selector)) - {"job", "instance"}
        assert labels <= set(spec.labels), f"{where}: {name} has the labels {spec.labels}"


def test_every_metric_of_work_is_on_the_dashboard() -> None:
    """But facts about versions, and what only an alert needs."""
    shown = {name for panel in panels() for target in panel["targets"] for name in metrics_of(target["expr"])}
    asked = {name for alert in ALERTS for name in metrics_of(alert.expr)}
    left_out = {
        *("ledgerq_build_info", "ledgerq_queues", "ledgerq_slatedb_last_compaction_timestamp_seconds"),
    }
    assert set(CATALOGUE) - shown - asked == left_out


# The alerts


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_is_wrong_and_where_it_stands_what_to_do(alert: Any) -> None:
    assert re.fullmatch(r"Ledgerq([A-Z][a-z]+)+", alert.name)
    assert alert.summary
    assert not alert.summary.endswith(".")
    assert alert.description.endswith(".")
    assert alert.runbook_url.startswith("https://")


# The command


def read(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()
    }


def test_export_writes_them_all(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    said = cli.ok("monitoring", "export", folder).out.splitlines()
    assert said == [str(folder / name) for name in generate.NAMES]
    assert read(folder) == generate.contents()
    again = cli.ok("monitoring", "export", folder, "--json")
    assert again.json == {"folder": str(folder), "files": [*generate.NAMES]}


def test_export_overwrites_nothing_of_others_unless_told_to(cli: Cli, tmp_path: Path) -> None:
    mine = {"prometheus.yml": "mine\n", "grafana/ledgerq.json": "mine too\n", "other": "untouched\n"}
    (tmp_path / "grafana").mkdir()
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    line = cli.fails(2, "monitoring", "export", tmp_path)
    assert str(tmp_path / "prometheus.yml") in line
    assert str(tmp_path / "grafana/ledgerq.json") in line
    assert "--force" in line
    assert read(tmp_path) == mine
    cli.ok("monitoring", "export", tmp_path, "--force")
    assert read(tmp_path) == {**mine, **generate.contents()}


def test_export_to_where_nothing_can_be_written_is_one_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "prometheus.yml").mkdir()
    for folder in (tmp_path / "file", tmp_path):
        line = cli.fails(2, "monitoring", "export", folder)
        assert "can't be written" in line
        assert line.endswith("name another folder")


def test_table_prints_that_of_the_pages(cli: Cli) -> None:
    assert cli.ok("monitoring", "table").out == markdown()


def test_monitoring_alone_is_wrong_usage(cli: Cli) -> None:
    assert "Missing command" in cli.fails(2, "monitoring")
