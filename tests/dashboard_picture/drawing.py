"""The drawing of one panel of the dashboard, for picture.py. Everything of matplotlib's is passed in."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

__all__ = ["PAGE", "draw", "in_unit", "panel_area"]

Values = Mapping[float, float]
Series = tuple[str, Mapping[str, str], Values]
Bounds = tuple[float, float, float, float]

PAGE: Final = "#111217"
_PANEL: Final = "#181b1f"
_TEXT: Final = "#ccccdc"
_FAINT: Final = "#8e8e99"
_GRID: Final = "#2c3036"
# Grafana's classic palette.
_PALETTE: Final = (
    *("#7EB26D", "#EAB839", "#6ED0E0", "#EF843C", "#E24D42", "#1F78C1", "#BA43A9", "#705DA0", "#508642", "#CCA300"),
    *("#447EBC", "#C15C17"),
)
_NAMED: Final = {"green": "#56A64B", "yellow": "#E0B400", "orange": "#FF780A", "red": "#E02F44"}
_SMALL_PT: Final = 6.4
_TITLE_PT: Final = 8.0
_GAP_PX: Final = 3
_TITLE_PX: Final = 22
_AXIS_PX: Final = 46
_CLOCK_PX: Final = 16
_LEGEND_LINE_PX: Final = 13
_CHAR_PX: Final = 4.9
_MOST_TICKS: Final = 5
_DECADES: Final = tuple(step * 10.0**power for power in range(-6, 9) for step in (1, 2, 5))
_TICK_STEPS: Final = {
    "s": (*(step for step in _DECADES if step < 20), 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21_600.0),
    "bytes": tuple(step * 1024.0**power for power in range(4) for step in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
}
# The areas of many lines together are one grey.
_FILLED_SERIES: Final = 3


def in_unit(value: float, unit: str) -> str:
    """A value as Grafana shows it."""
    if unit == "s":
        return _seconds(value)
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit in ("bytes", "Bps"):
        return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB")) + ("/s" if unit == "Bps" else "")
    if unit.startswith("suffix:"):
        return _scaled(value, 1000, ("", "K", "M")) + unit.removeprefix("suffix:")
    return _scaled(value, 1000, ("", "K", "M"))


def _seconds(value: float) -> str:
    size = abs(value)
    if size >= 120:
        return f"{value / 60:.3g} min"
    if size >= 1 or size == 0:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms" if size >= 0.001 else f"{value * 1e6:.3g} µs"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    at = 0
    while abs(value) >= 0.999 * base and at < len(units) - 1:
        value, at = value / base, at + 1
    return f"{value:.3g} {units[at]}".rstrip()


class Area:
    """A panel's rectangle; places within it are in pixels from its lower left corner."""

    def __init__(self, figure: Any, bounds: Bounds) -> None:
        self._figure = figure
        x, y, width, height = bounds
        self._px = figure.get_size_inches() * figure.dpi
        self.left, self.bottom = x * self._px[0] + _GAP_PX, y * self._px[1] + _GAP_PX
        self.width, self.height = width * self._px[0] - 2 * _GAP_PX, height * self._px[1] - 2 * _GAP_PX

    def axes(self, left: float, bottom: float, right: float, top: float, background: str = _PANEL) -> Any:
        """Axes with these margins."""
        width, height = self._px
        place = ((self.left + left) / width, (self.bottom + bottom) / height)
        size = ((self.width - left - right) / width, (self.height - bottom - top) / height)
        axes = self._figure.add_axes((*place, *size), facecolor=background)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.tick_params(colors=_FAINT, labelsize=_SMALL_PT, length=0, pad=3)
        return axes

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        """Text at a place."""
        width, height = self._px
        self._figure.text((self.left + x) / width, (self.bottom + y) / height, text, **{"color": _TEXT, **style})


def panel_area(figure: Any, panel: Mapping[str, Any], bounds: Bounds) -> Area:
    """The rectangle of a panel with its title, or the heading of a row."""
    area = Area(figure, bounds)
    if panel["type"] == "row":
        area.text(4, area.height / 2, panel["title"], fontsize=10, weight="bold", va="center")
        return area
    blank = area.axes(0, 0, 0, 0)
    blank.set_xticks([])
    blank.set_yticks([])
    area.text(8, area.height - 8, panel["title"], fontsize=_TITLE_PT, va="top", weight="bold")
    return area


def draw(area: Area, panel: Mapping[str, Any], series: Sequence[Series], began: float, ended: float) -> None:
    """What the panel shows of these series: each its legend's template, its labels and its values."""
    kind = panel["type"]
    if kind == "stat":
        _stat(area, panel, series[0][2])
    elif kind == "heatmap":
        axes = area.axes(_AXIS_PX, _CLOCK_PX + 6, 10, _TITLE_PX + 6)
        _heatmap(axes, panel, series)
        _clock(axes, began, ended)
    elif kind == "state-timeline":
        axes = area.axes(_AXIS_PX + 16, _CLOCK_PX + 6, 10, _TITLE_PX + 6)
        _timeline(axes, panel, series)
        _clock(axes, began, ended)
    else:
        _lines(area, panel, series, began, ended)


def _name(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda found: labels.get(found[1], ""), template)


def _colour(steps: Sequence[Mapping[str, Any]], value: float) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return _NAMED[reached[-1]]


def _word(panel: Mapping[str, Any], value: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    for mapping in defaults["mappings"]:
        if (found := mapping["options"].get(f"{value:g}")) is not None:
            return str(found["text"])
    return in_unit(value, defaults["unit"])


def _stat(area: Area, panel: Mapping[str, Any], values: Values) -> None:
    last = list(values.values())[-1]
    colour = _colour(panel["fieldConfig"]["defaults"]["thresholds"]["steps"], last)
    axes = area.axes(0, 0, 0, 0, colour)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.plot(list(values), list(values.values()), color="white", alpha=0.55, linewidth=1)
    axes.fill_between(list(values), list(values.values()), color="white", alpha=0.12, linewidth=0)
    axes.margins(x=0)
    axes.set_ylim(0, 2.6 * (max(values.values()) or 1))
    area.text(8, area.height - 8, panel["title"], fontsize=_TITLE_PT, va="top", weight="bold", color="white")
    middle = {"fontsize": 17, "ha": "center", "va": "center", "weight": "bold", "color": "white"}
    area.text(area.width / 2, area.height * 0.5, _word(panel, last), **middle)


def _clock(axes: Any, began: float, ended: float) -> None:
    """The time axis in minutes since the left edge, since the wall clock's time then is of no use."""
    axes.set_xlim(began, ended)
    minutes = (ended - began) / 60
    step = next((step for step in (0.5, 1, 2, 5, 10, 30, 60) if minutes / step <= 6), 240)
    ticks = [index * step for index in range(int(0.97 * minutes / step) + 1)]
    axes.set_xticks([began + 60 * tick for tick in ticks], [f"{tick:g} min" if tick else "0" for tick in ticks])


def _lines(area: Area, panel: Mapping[str, Any], series: Sequence[Series], began: float, ended: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    unit = defaults["unit"]
    names = [_name(legend, labels) for legend, labels, _ in series]
    entries = [
        f"{name} {in_unit(list(values.values())[-1], unit)}" for name, (_, _, values) in zip(names, series, strict=True)
    ]
    columns = max(1, int((area.width - 20) / (max(map(len, entries)) * _CHAR_PX + 24)))
    lines = math.ceil(len(entries) / columns)
    legend_px = lines * _LEGEND_LINE_PX + 4
    left_px = _AXIS_PX + (14 if unit == "Bps" else 0)
    axes = area.axes(left_px, _CLOCK_PX + legend_px + 4, 10, _TITLE_PX + 6)
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    handles = _stack(axes, series) if stacked else _curves(axes, names, series)
    _clock(axes, began, ended)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    top = max(max(values.values()) for _, _, values in series)
    if "min" in defaults and not stacked:
        axes.set_ylim(0, 1.08 * top or 1)
    elif stacked:
        axes.set_ylim(bottom=0)
    low, high = axes.get_ylim()
    axes.set_yticks(_ticks(low, high, unit))
    axes.yaxis.set_major_formatter(lambda value, _: in_unit(value, unit))
    for step in defaults["thresholds"]["steps"][1:]:
        if axes.get_ylim()[0] <= step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], color=_NAMED[step["color"]], linewidth=0.8, linestyle=(0, (4, 3)))
    height = area.height - 2 * _TITLE_PX - legend_px
    below = {"loc": "upper left", "bbox_to_anchor": (-0.02, -(_CLOCK_PX + 3) / height), "ncols": columns}
    small = {"fontsize": _SMALL_PT, "labelcolor": _TEXT, "frameon": False, "borderpad": 0, "columnspacing": 1.0}
    axes.legend(handles, entries, **below, **small, handlelength=1.1, handletextpad=0.4, labelspacing=0.3)


def _ticks(low: float, high: float, unit: str) -> list[float]:
    """A few values that are round in what they are shown in."""
    steps = _TICK_STEPS.get("bytes" if unit == "Bps" else unit, _DECADES)
    step = next((step for step in steps if (high - low) / step <= _MOST_TICKS), steps[-1])
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _holes(values: Values) -> tuple[list[float], list[float]]:
    """The points of a line that is broken where values are missing."""
    times = list(values)
    usual = min((after - before for before, after in pairwise(times)), default=0)
    xs: list[float] = []
    ys: list[float] = []
    for at, value in values.items():
        if xs and at - xs[-1] > 1.5 * usual:
            xs.append((at + xs[-1]) / 2)
            ys.append(math.nan)
        xs.append(at)
        ys.append(value)
    return xs, ys


def _curves(axes: Any, names: Sequence[str], series: Sequence[Series]) -> list[Any]:
    handles = []
    for index, (name, (_, _, values)) in enumerate(zip(names, series, strict=True)):
        limit = name == "limit"
        colour = _NAMED["red"] if limit else _PALETTE[index % len(_PALETTE)]
        xs, ys = _holes(values)
        (line,) = axes.plot(xs, ys, color=colour, linewidth=1.1, linestyle="--" if limit else "-")
        if not limit and len(names) <= _FILLED_SERIES:
            axes.fill_between(xs, ys, color=colour, alpha=0.07, linewidth=0)
        handles.append(line)
    return handles


def _stack(axes: Any, series: Sequence[Series]) -> list[Any]:
    times = sorted({at for _, _, values in series for at in values})
    layers = [[values.get(at, 0.0) for at in times] for _, _, values in series]
    polygons = axes.stackplot(times, *layers, colors=_PALETTE[: len(layers)], alpha=0.7, linewidth=0.6)
    return list(polygons)


def _heatmap(axes: Any, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    """Buckets are counted from below: what falls into one is the difference to that under it."""
    below = sorted((float(labels["le"]), values) for _, labels, values in series)
    times = sorted({at for _, values in below for at in values})
    rows = [
        [max(0.0, values.get(at, 0.0) - (under.get(at, 0.0))) for at in times]
        for (_, values), under in zip(below, [{}, *(values for _, values in below)], strict=False)
    ]
    used = [index for index, row in enumerate(rows) if max(row) > 0]
    first, last = max(0, used[0] - 1), min(len(rows), used[-1] + 2)
    cells = [[math.sqrt(value) if value > 0 else math.nan for value in row] for row in rows[first:last]]
    step = times[1] - times[0] if len(times) > 1 else 1
    edges = [times[0] - step, *times]
    axes.pcolormesh(edges, range(last - first + 1), cells, cmap="YlOrBr_r", edgecolors=_PANEL, linewidth=0.4)
    unit = panel["options"]["yAxis"]["unit"]
    bounds = [le for le, _ in below][first:last]
    shown = [index for index in range(len(bounds)) if len(bounds) <= 10 or index % 2 == 0]
    axes.set_yticks(
        [index + 1 for index in shown],
        ["+Inf" if math.isinf(bounds[index]) else in_unit(bounds[index], unit) for index in shown],
    )


def _timeline(axes: Any, panel: Mapping[str, Any], series: Sequence[Series]) -> None:
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    for index, (_, _, values) in enumerate(series):
        times = list(values)
        step = min((after - before for before, after in pairwise(times)), default=1)
        colours = [_colour(steps, value) for value in values.values()]
        axes.broken_barh([(at, step * 1.02) for at in times], (index + 0.12, 0.76), facecolors=colours, linewidth=0)
        last = list(values.values())[-1]
        axes.text(times[0] + 2 * step, index + 0.5, _word(panel, last), color="white", fontsize=_SMALL_PT, va="center")
    names = [_name(legend, labels) for legend, labels, _ in series]
    axes.set_yticks([index + 0.5 for index in range(len(series))], names)
    axes.set_ylim(len(series), 0)
