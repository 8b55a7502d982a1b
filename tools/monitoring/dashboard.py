"""The dashboard as Grafana imports it: panels laid out row by row, with their variables, units and colours.

The panels are in panels.py. `generate.py` writes the file.
"""

import re
from collections.abc import Iterator, Mapping
from json import dumps
from typing import Any, Final

from ledgerq.projections.metrics.catalogue import CATALOGUE
from ledgerq.tools.monitoring.panels import ROWS, Panel, PanelType, Row

__all__ = ["GRID_COLUMNS", "dashboard", "dashboard_file", "filled_in", "metrics_of"]

GRID_COLUMNS: Final = 24
# Grafana 10.4 and 11.
_SCHEMA_VERSION: Final = 39
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_METRIC: Final = re.compile(r"\bledgerq_[a-z0-9_]+")


def metrics_of(expr: str) -> list[str]:
    """The metrics that an expression queries, by their names in the catalogue."""
    found = (re.sub(r"_(bucket|count|sum)$", "", name) for name in _METRIC.findall(expr))
    return list(dict.fromkeys(found))


def filled_in(expr: str, values: Mapping[str, str]) -> str:
    """An expression as Grafana sends it, with these values for its variables, `__rate_interval` being one of them."""
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)


def dashboard_file() -> str:
    """The dashboard as text."""
    return dumps(dashboard(), indent=2) + "\n"


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana's JSON model."""
    return {
        "annotations": {"list": []},
        "description": "Job queues of ledgerq: what comes in, waits, runs, fails, and how the log and its store do.",
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [],
        "panels": list(_laid_out()),
        "refresh": "30s",
        "schemaVersion": _SCHEMA_VERSION,
        "tags": ["ledgerq", "queue"],
        "templating": {"list": list(_variables())},
        "time": {"from": "now-3h", "to": "now"},
        "timepicker": {},
        "timezone": "",
        "title": "ledgerq",
        "uid": "ledgerq",
        "version": 1,
        "weekStart": "",
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "current": {},
        "hide": 0,
        "includeAll": False,
        "label": "Data source",
        "multi": False,
        "name": "datasource",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }
    # One job at a time: a worker and an exporter that watch the same store would count it twice.
    about_job = "The job of Prometheus's configuration: workers, or exporters, which know nothing of workers."
    yield _variable("job", "Job", "label_values(ledgerq_log_events_total, job)", about_job, several=False)
    about_instance = "Choose those that watch different stores: one that is watched by two is counted twice."
    of_instance = 'label_values(ledgerq_log_events_total{job=~"$job"}, instance)'
    yield _variable("instance", "Instance", of_instance, about_instance)
    of_queue = 'label_values(ledgerq_jobs{job=~"$job",instance=~"$instance"}, queue)'
    yield _variable("queue", "Queue", of_queue, "Panels of whole processes and stores don't depend on it.")


def _variable(name: str, label: str, query: str, description: str, *, several: bool = True) -> dict[str, Any]:
    return {
        # All values, in one short matcher.
        "allValue": ".*" if several else None,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]} if several else {},
        "datasource": _SOURCE,
        "definition": query,
        "description": description,
        "hide": 0,
        "includeAll": several,
        "label": label,
        "multi": several,
        "name": name,
        "options": [],
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
        "type": "query",
    }


def _laid_out() -> Iterator[dict[str, Any]]:
    """Lay out panels from left to right, in lines from top to bottom."""
    y = number = 0
    for row in ROWS:
        number += 1
        yield _heading(row, number, y)
        x, y = 0, y + 1
        for panel in row.panels:
            number += 1
            if x + panel.columns > GRID_COLUMNS:
                x, y = 0, y + row.height
            yield _panel(panel, number, {"h": row.height, "w": panel.columns, "x": x, "y": y})
            x += panel.columns
        y += row.height


def _heading(row: Row, number: int, y: int) -> dict[str, Any]:
    place = {"h": 1, "w": GRID_COLUMNS, "x": 0, "y": y}
    return {"collapsed": False, "gridPos": place, "id": number, "panels": [], "title": row.title, "type": "row"}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    kind = "timeseries" if panel.type == "stacked" else panel.type
    return {
        "datasource": _SOURCE,
        "description": _description(panel),
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "gridPos": place,
        "id": number,
        "options": _options(panel.type, panel.unit),
        "targets": list(_targets(panel)),
        "title": panel.title,
        "type": kind,
    }


def _description(panel: Panel) -> str:
    """A panel's description: what is shown, and the catalogue's texts of its metrics."""
    names = dict.fromkeys(name for target in panel.targets for name in metrics_of(target.expr))
    return "\n\n".join([panel.about, *(f"`{name}`: {CATALOGUE[name].help}" for name in names)])


def _targets(panel: Panel) -> Iterator[dict[str, Any]]:
    for letter, target in zip("ABCDEFGH", panel.targets, strict=False):
        instant = panel.type == "stat" and panel.unit == "bool_on_off"
        yield {
            "datasource": _SOURCE,
            "editorMode": "code",
            # Exemplars carry the id of a job.
            "exemplar": "_bucket{" in target.expr,
            "expr": target.expr,
            "format": "heatmap" if panel.type == "heatmap" else "time_series",
            "instant": instant,
            "legendFormat": target.legend or "__auto",
            "range": not instant,
            "refId": letter,
        }


def _defaults(panel: Panel) -> dict[str, Any]:
    if panel.type == "heatmap":
        return {"custom": {"hideFrom": {"legend": False, "tooltip": False, "viz": False}}}
    steps = [{"color": color, "value": value} for value, color in panel.steps] or [{"color": "green", "value": 0}]
    # The first colour is that of everything below the second.
    first: dict[str, Any] = {"color": steps[0]["color"], "value": None}
    defaults: dict[str, Any] = {
        "color": {"mode": "thresholds" if panel.type in ("stat", "state-timeline") else "palette-classic"},
        "mappings": _mappings(panel.unit),
        "thresholds": {"mode": "absolute", "steps": [first, *steps[1:]]},
        "unit": panel.unit,
    }
    if panel.type in ("timeseries", "stacked"):
        defaults["custom"] = _drawing(panel)
        if not any(value < 0 for value, _ in panel.steps):
            defaults["min"] = 0
    elif panel.type == "state-timeline":
        defaults["custom"] = {"fillOpacity": 70, "lineWidth": 0, "spanNulls": False}
    return defaults


def _mappings(unit: str) -> list[dict[str, Any]]:
    """The words for yes and no values."""
    words = {"bool_on_off": ("failed", "up"), "bool": ("runs", "paused")}.get(unit)
    if words is None:
        return []
    return [{"type": "value", "options": {str(at): {"index": at, "text": word} for at, word in enumerate(words)}}]


def _drawing(panel: Panel) -> dict[str, Any]:
    stacked = panel.type == "stacked"
    return {
        "drawStyle": "line",
        "fillOpacity": 40 if stacked else 10,
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
    }


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    """The overrides of a panel: a limit is drawn as a line, not as one more series among those it bounds."""
    if not any(target.legend == "limit" for target in panel.targets):
        return []
    properties = [
        {"id": "color", "value": {"fixedColor": "red", "mode": "fixed"}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.lineStyle", "value": {"dash": [8, 8], "fill": "dash"}},
    ]
    return [{"matcher": {"id": "byName", "options": "limit"}, "properties": properties}]


def _options(kind: PanelType, unit: str) -> dict[str, Any]:
    if kind == "stat":
        last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"colorMode": "background", "graphMode": "area", "justifyMode": "auto", "reduceOptions": last}
    if kind == "state-timeline":
        legend: dict[str, Any] = {"displayMode": "list", "placement": "bottom", "showLegend": True}
        return {"alignValue": "left", "legend": legend, "mergeValues": True, "rowHeight": 0.8, "showValue": "auto"}
    if kind == "heatmap":
        return {
            # Prometheus's buckets are counted already.
            "calculate": False,
            "cellGap": 1,
            "color": {"exponent": 0.5, "mode": "scheme", "scale": "exponential", "scheme": "Oranges", "steps": 64},
            # Nothing is drawn where nothing was.
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "tooltip": {"mode": "single", "yHistogram": False},
            "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        }
    legend = {"calcs": ["lastNotNull", "max"], "displayMode": "list", "placement": "bottom", "showLegend": True}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
