"""The dashboard drawn from a Prometheus's data, panel by panel, so that people see what they will get.

    python -m tests.dashboard_picture.picture http://localhost:9090 dashboard.png --minutes 5

It needs matplotlib, which is no dependency: it is run by hand. The panels' queries are the dashboard's own.
"""

import json
import math
import time
import urllib.parse
import urllib.request
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import typer

from ledgerq.tools.monitoring.dashboard import GRID_COLUMNS, dashboard, filled_in
from tests.dashboard_picture.drawing import PAGE, draw, panel_area

__all__ = ["Place", "picture"]

_WIDTH_PX: Final = 1600
_UNIT_PX: Final = 27
_DPI: Final = 100
_STEPS: Final = 200
_HEATMAP_STEPS: Final = 48
_ASK_LIMIT_S: Final = 60.0
_COLOURS: Final = 96


class Place(NamedTuple):
    """Where the data are, and from when to when."""

    url: str
    job: str
    began: float
    ended: float
    rate_interval: str

    def ask(self, expr: str, steps: int = _STEPS) -> list[tuple[dict[str, str], dict[float, float]]]:
        """The series of a panel's query, each with its values by time."""
        values = {"job": self.job, "instance": ".*", "queue": ".*", "__rate_interval": self.rate_interval}
        step = (self.ended - self.began) / steps
        query = {"query": filled_in(expr, values), "start": self.began, "end": self.ended, "step": f"{step:.3f}"}
        url = f"{self.url}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=_ASK_LIMIT_S) as answer:
            found = json.load(answer)["data"]["result"]
        return [
            (one["metric"], {float(at): value for at, text in one["values"] if math.isfinite(value := float(text))})
            for one in found
        ]


def picture(place: Place, path: Path) -> list[str]:
    """Draw the whole dashboard; gives the titles of panels that show nothing."""
    pyplot = import_module("matplotlib.pyplot")
    panels = dashboard()["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    figure = pyplot.figure(figsize=(_WIDTH_PX / _DPI, rows * _UNIT_PX / _DPI), dpi=_DPI, facecolor=PAGE)
    empty = []
    for panel in panels:
        at = panel["gridPos"]
        bounds = (at["x"] / GRID_COLUMNS, 1 - (at["y"] + at["h"]) / rows, at["w"] / GRID_COLUMNS, at["h"] / rows)
        area = panel_area(figure, panel, bounds)
        if panel["type"] == "row":
            continue
        steps = _HEATMAP_STEPS if panel["type"] == "heatmap" else _STEPS
        asked = [(target["legendFormat"], place.ask(target["expr"], steps)) for target in panel["targets"]]
        series = [(legend, labels, values) for legend, found in asked for labels, values in found if values]
        if series:
            draw(area, panel, series, place.began, place.ended)
        else:
            empty.append(panel["title"])
    figure.savefig(path, facecolor=PAGE)
    pyplot.close(figure)
    _shrink(path)
    return empty


def _shrink(path: Path) -> None:
    """Few colours are enough, and make a small file."""
    image: Any = import_module("PIL.Image").open(path)
    image.convert("RGB").quantize(_COLOURS, dither=0).save(path, optimize=True)


def main(
    url: Annotated[str, typer.Argument(metavar="URL", help="Where Prometheus is.")],
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The picture to make.")],
    job: Annotated[str, typer.Option(help="Which job of its configuration.")] = "ledgerq",
    minutes: Annotated[float, typer.Option(help="How far back.")] = 60,
    rate_interval: Annotated[str, typer.Option(help="Over which time rates are taken.")] = "1m",
) -> None:
    """Draw the dashboard."""
    now = time.time()
    empty = picture(Place(url.rstrip("/"), job, now - 60 * minutes, now, rate_interval), path)
    for title in empty:
        print(f"{title}: no data")


if __name__ == "__main__":
    typer.run(main)
