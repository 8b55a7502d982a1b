"""The benchmark's results for people and for programs: which machine, which versions, a table, a JSON document."""

import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ledgerq.eventlog.runtime.process import package_version
from ledgerq.tools.bench.measurement import Measurement

__all__ = ["file_system_of", "machine", "print_table"]


def machine(folder: Path | None) -> dict[str, Any]:
    """The machine and the versions of the measurement; `folder` is where the stores are, if on this machine."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "slatedb": package_version("slatedb"),
        "ledgerq": package_version(),
        "file_system": None if folder is None else file_system_of(folder),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def file_system_of(folder: Path) -> str:
    """The kind of file system that holds `folder` ("ext4", "tmpfs"), or "unknown"."""
    mounts = Path("/proc/self/mounts")
    if not mounts.exists():
        return "unknown"
    best, kind = -1, "unknown"
    real = folder.resolve()
    for line in mounts.read_text().splitlines():
        _, mount_point, file_system, *_ = line.split()
        point = Path(mount_point.replace("\\040", " "))
        if (real == point or point in real.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), file_system
    return kind


def print_table(console: Console, document: dict[str, Any], found: Sequence[Measurement]) -> None:
    """Everything on one screen: a table on a terminal, aligned lines elsewhere."""
    where, parameters = document["machine"], document["parameters"]
    say = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    say(
        f"{where['cpu']}, {where['cores']} cores, {where['kernel']}, Python {where['python']}, "
        f"slatedb {where['slatedb']}, ledgerq {where['ledgerq']}, file system {where['file_system'] or 'none'}"
    )
    interval_ms = parameters["commit_interval_ms"]
    say(
        f"medians of {parameters['runs']} runs (lowest to highest); fsync {'on' if parameters['fsync'] else 'off'}, "
        f"commit interval {'default' if interval_ms is None else f'{interval_ms:g} ms'}, "
        f"baseline's flush interval {parameters['baseline_flush_interval_ms'] or '-'} ms, without fsync"
    )
    rows = [("measured", "ledgerq", "baseline", "ratio", "target"), *(_row(one) for one in found)]
    if console.is_terminal:
        table = Table(*rows[0])
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say(line.rstrip())


def _row(one: Measurement) -> tuple[str, str, str, str, str]:
    ours = f"{_number(one.median)} {one.unit}"
    if len(one.runs) > 1:
        ours += f" ({_number(min(one.runs))} to {_number(max(one.runs))})"
    theirs = one.document()["baseline_median"]
    target = ""
    if one.target is not None:
        target = f"{one.target.text}: {'reached' if one.reached else 'missed'}"
    ratio = "" if one.ratio is None else f"{one.ratio:.1f}x"
    return one.title, ours, "" if theirs is None else _number(theirs), ratio, target


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
