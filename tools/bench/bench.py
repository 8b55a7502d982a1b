"""The benchmark: `ledgerq bench`, or `python -m ledgerq.tools.bench`. It measures and reports, and fails nothing.

Each number is printed beside the cost of the same work as one SlateDB transaction per transition on the public binding
(baseline.py), measured in the same run, in turns; the ratios are what carries over to other machines. Targets
are printed beside the results. Next: throughput.py, drain.py, latency.py, log_reading.py, log_audit.py, store_open.py,
s3.py, metrics_cost.py.
"""

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from ledgerq.eventlog.locations import parse_location
from ledgerq.tools.bench.drain import measure_drain
from ledgerq.tools.bench.latency import measure_latency
from ledgerq.tools.bench.log_audit import measure_audit
from ledgerq.tools.bench.log_reading import measure_replay
from ledgerq.tools.bench.measurement import FULL, QUICK, Bench, Measurement
from ledgerq.tools.bench.metrics_cost import measure_metrics_cost
from ledgerq.tools.bench.results import file_system_of, machine, print_table
from ledgerq.tools.bench.s3 import can_measure_s3, measure_s3, measure_s3_requests
from ledgerq.tools.bench.store_open import measure_open
from ledgerq.tools.bench.throughput import (
    choose_flush_interval,
    measure_bulk,
    measure_claim,
    measure_enqueue,
    measure_worker,
)

__all__ = ["MEASUREMENTS", "app", "bench", "measure"]

MEASUREMENTS: Final[dict[str, Callable[[Bench], Awaitable[list[Measurement]]]]] = {
    "enqueue": measure_enqueue,
    "claim": measure_claim,
    "worker": measure_worker,
    "bulk": measure_bulk,
    "latency": measure_latency,
    "drain": measure_drain,
    "replay": measure_replay,
    "audit": measure_audit,
    "open": measure_open,
    "s3": measure_s3,
    "s3-requests": measure_s3_requests,
    "metrics": measure_metrics_cost,
}
_WITH_BASELINE: Final = frozenset({"enqueue", "claim", "worker", "bulk"})
_ON_S3: Final = frozenset({"s3", "s3-requests"})
_RUNS: Final = 3

app = typer.Typer(add_completion=False)


async def measure(run: Bench, only: list[str]) -> tuple[dict[str, Any], list[Measurement]]:
    """Measure what is asked for (all when `only` is empty); returns the JSON document and what it was made from."""
    names = [name for name in MEASUREMENTS if not only or name in only]
    if not only and (why := can_measure_s3()):
        names = [name for name in names if name not in _ON_S3]
        run.say(f"s3: left out, {why}")
    tried: dict[str, float] = {}
    if not _WITH_BASELINE.isdisjoint(names):
        tried = await choose_flush_interval(run)
    found: list[Measurement] = []
    for name in names:
        found += await MEASUREMENTS[name](run)
    location = parse_location(run.root)
    document = {
        "machine": machine(location.folder if location.is_file else None),
        "parameters": {
            "store": location.scheme,
            "runs": run.runs,
            "fsync": run.fsync and location.is_file,
            "commit_interval_ms": run.commit_interval_ms,
            **asdict(run.sizes),
            "baseline_fsync": False,
            "baseline_flush_interval_ms": run.flush_interval_ms or None,
            "baseline_jobs_per_s_by_flush_interval_ms": tried,
        },
        "measurements": [one.document() for one in found],
    }
    return document, found


async def _measure_until_terminated(run: Bench, only: list[str]) -> tuple[dict[str, Any], list[Measurement]]:
    """Like `measure`; SIGTERM ends it in order: stores are removed, and the processes that were started end."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await measure(run, only)


@contextmanager
def _storage(folder: Path | None, url: str | None) -> Iterator[str]:
    """The location of the stores: a new folder that is removed at the end, or below `url`."""
    if url is not None:
        location = parse_location(url)
        if location.is_memory:
            raise typer.BadParameter("a memory store is gone between the steps: give a folder or a bucket")
        if not location.is_file:
            yield f"{url.rstrip('/')}/bench-{os.getpid()}"
            return
        folder = location.folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ledgerq-bench-", dir=folder or _folder_on_disk()) as made:
        yield made


def _folder_on_disk() -> Path:
    """The folder for temporary files, unless it is memory: then the one for those that outlive a restart."""
    usual, lasting = Path(tempfile.gettempdir()), Path("/var/tmp")  # noqa: S108
    in_memory = file_system_of(usual) in ("tmpfs", "ramfs")
    return lasting if in_memory and lasting.is_dir() else usual


@app.command("bench")
def bench(
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join(MEASUREMENTS)}; repeatable.")] = None,
    runs: Annotated[int | None, typer.Option(min=1, help=f"Runs of each, default {_RUNS} (1 with --quick).")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes, to see that it works.")] = False,
    dir_: Annotated[Path | None, typer.Option("--dir", help="Folder for the stores, which are removed again.")] = None,
    url: Annotated[
        str | None, typer.Option(help="Bucket for the stores, which stay there: s3://bucket/prefix.")
    ] = None,
    fsync: Annotated[bool, typer.Option("--fsync/--no-fsync", help="Sync each commit of a file store.")] = True,
    commit_interval_ms: Annotated[float | None, typer.Option(min=0, help="Default: as the queue's.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Measure throughput, latency, replay, audit, rebuild, opening, a bucket and metrics, beside a baseline."""
    unknown = sorted(set(only or ()) - MEASUREMENTS.keys())
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(MEASUREMENTS)}", param_hint="--only")
    if not _ON_S3.isdisjoint(only or ()) and (why := can_measure_s3()):
        raise typer.BadParameter(why, param_hint="--only")
    messages = Console(stderr=True, highlight=False)
    with _storage(dir_, url) as root:
        run = Bench(
            root=root,
            sizes=QUICK if quick else FULL,
            runs=runs or (1 if quick else _RUNS),
            fsync=fsync,
            commit_interval_ms=commit_interval_ms,
            say=lambda text: messages.print(text, markup=False, soft_wrap=True),
        )
        try:
            document, found = asyncio.run(_measure_until_terminated(run, only or []))
        except asyncio.CancelledError:
            sys.exit(128 + signal.SIGTERM)
    if json_:
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        print_table(Console(), document, found)
