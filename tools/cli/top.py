"""The command top: how the queues do, again and again. It only reads, beside the writer."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer

from ledgerq.tools.console.arguments import AsJson, Url
from ledgerq.tools.console.opening import execute, reading
from ledgerq.tools.console.output import Output, local_time

if TYPE_CHECKING:
    from ledgerq.eventlog.log import LogReader
    from ledgerq.projections.stats import QueueStats

__all__ = ["Frame", "QueueLine", "frame_of", "top"]

_COLUMNS: Final = ("queue", "pending", "oldest", "claimed", "scheduled", "dead", "in/s", "done/s", "failed/s")
_CLEAR: Final = "\x1b[H\x1b[2J"


class QueueLine(NamedTuple):
    """A queue at one moment. Rates are for a second since the frame before, None in the first one."""

    stats: "QueueStats"
    oldest_s: float | None
    enqueued_s: float | None
    acked_s: float | None
    failed_s: float | None


class Frame(NamedTuple):
    """All queues at one moment, by the log up to `offset`."""

    time_ms: int
    offset: int
    queues: list[QueueLine]


def top(
    url: Url,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.5, max=3600.0, help="So long between two frames.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One frame, without rates, and no more.")] = False,
    as_json: AsJson = False,
) -> None:
    """Watch the queues, again and again.

    How much waits and for how long, and what comes, is done and fails in a second.

    Ends with Ctrl-C. It only reads, so it runs beside the writer.
    """
    execute(_top(url, interval, once, Output(as_json=as_json)))


async def _top(url: str, interval_s: float, once: bool, output: Output) -> None:
    async with reading(url, pinned=once) as log:
        before: Frame | None = None
        while True:
            before = await frame_of(log, before)
            _show(before, output)
            if once:
                return
            await asyncio.sleep(interval_s)


async def frame_of(log: "LogReader", before: Frame | None) -> Frame:
    """The queues as they are now; rates since the frame `before`."""
    from ledgerq.projections.metrics.store_queries import hints, oldest_pending_ms
    from ledgerq.projections.view import LedgerView

    now_ms, offset = log.clock.now_ms(), await log.end()
    all_stats = [counters.view(queue) for queue, counters in await LedgerView(log).counters()]
    starts = await hints(log.store, [stats.queue for stats in all_stats if stats.pending])
    earlier = {} if before is None else {line.stats.queue: line.stats.totals for line in before.queues}
    seconds = 0.0 if before is None else (now_ms - before.time_ms) / 1000
    lines: list[QueueLine] = []
    for stats in all_stats:
        oldest_ms = None
        if stats.queue in starts:
            oldest_ms = await oldest_pending_ms(log.store, stats.queue, starts[stats.queue])
        oldest_s = None if oldest_ms is None else max(0.0, (now_ms - oldest_ms) / 1000)
        lines.append(QueueLine(stats, oldest_s, *_rates(stats.totals, earlier.get(stats.queue, {}), seconds)))
    return Frame(now_ms, offset, lines)


def _rates(totals: Mapping[str, int], earlier: Mapping[str, int], seconds: float) -> list[float | None]:
    """Enqueued, acked, and failed in a second: tries that were nacked and not given back, or whose lease ended."""
    if seconds <= 0:
        return [None, None, None]
    since = {name: count - earlier.get(name, 0) for name, count in totals.items()}
    failed = since["nacked"] - since["released"] + since["lease_expired"]
    return [count / seconds for count in (since["enqueued"], since["acked"], failed)]


def _show(frame: Frame, output: Output) -> None:
    if output.as_json:
        output.json(_json(frame))
    else:
        if output.is_terminal:
            print(_CLEAR, end="")
        output.line(f"{local_time(frame.time_ms, 'seconds')}, {frame.offset} events")
        rows = [_row(line) for line in frame.queues]
        output.table(_COLUMNS, rows, right=_COLUMNS[1:])
    output.flush()


def _row(line: QueueLine) -> list[str]:
    stats = line.stats
    return [
        stats.queue + (" (paused)" if stats.paused else ""),
        str(stats.pending),
        _seconds(line.oldest_s),
        str(stats.claimed),
        str(stats.scheduled),
        str(stats.dead),
        *("-" if rate is None else f"{rate:.1f}" for rate in (line.enqueued_s, line.acked_s, line.failed_s)),
    ]


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _json(frame: Frame) -> dict[str, Any]:
    from ledgerq.tools.console.descriptions import stats_json, time_json

    queues = [
        stats_json(line.stats)
        | {
            "oldest_pending_s": line.oldest_s,
            "rates_s": None
            if line.enqueued_s is None
            else {"enqueued": line.enqueued_s, "acked": line.acked_s, "failed": line.failed_s},
        }
        for line in frame.queues
    ]
    return {**time_json("time", frame.time_ms), "offset": frame.offset, "queues": queues}
