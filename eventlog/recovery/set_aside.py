"""Setting files aside: moved out of a file store's way into `set-aside/TIME/`, with a report of the reasons.

The report is written before the first file is moved, and gets its other name once a writer has put the fact into the
log: a crash between any two steps leaves something that the next opening finishes. Everything here blocks.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.files.fsync import sync_path, write_small
from ledgerq.eventlog.files.private_folders import STORE_FOLDERS
from ledgerq.eventlog.runtime.log_records import about, logger

__all__ = ["SetAside", "mark_recorded", "move_aside", "read_set_aside"]

_log = logger("store")

_FOLDER: Final = "set-aside"
_REPORT: Final = "report.json"
_RECORDED: Final = "recorded.json"
_MAX_REPORT_BYTES: Final = 16 * 1024 * 1024


class SetAside(NamedTuple):
    """Files that are in one folder of set-aside/: their names in the store ("wal/000...1.sst"), and what was wrong.

    `is_recorded`: the fact is in the log.
    """

    folder: str
    files: dict[str, str]
    is_recorded: bool


def move_aside(store: Path, files: Mapping[str, str], synced: Callable[[], None]) -> SetAside:
    """Move `files`, with what is wrong with each, out of the way of the store in the folder `store`. Raises OSError.

    `synced` is called after each sync or two.
    """
    stamp = datetime.fromtimestamp(SystemClock().now_ms() / 1000, UTC).strftime("%Y%m%dT%H%M%S.%f")
    target, more = store / _FOLDER / f"{stamp}Z", 0
    while target.exists():
        more += 1
        target = store / _FOLDER / f"{stamp}Z-{more}"
    target.mkdir(mode=0o700, parents=True)
    write_small(target / _REPORT, json.dumps({"files": dict(files)}, indent=1).encode())
    synced()
    for folder in (store / _FOLDER, store):
        sync_path(folder)
        synced()
    # Manifests last, when the rest is on the disk: once the newest one is gone, whatever is still there would be read
    # with the one before it.
    for kind in sorted(STORE_FOLDERS, key=lambda kind: kind == "manifest"):
        for name in (name for name in files if name.startswith(f"{kind}/")):
            (target / kind).mkdir(mode=0o700, exist_ok=True)
            (store / name).rename(target / name)
        for folder in (target / kind, store / kind):
            if folder.is_dir():
                sync_path(folder)
                synced()
    sync_path(target)
    moved = SetAside(f"{_FOLDER}/{target.name}", dict(files), False)
    some = "; ".join(f"{name}: {what}" for name, what in list(files.items())[:10])
    _log.warning(
        "%s could not be opened as it was found, and holds all that was promised without %d files, which are in %s now "
        "and may be removed (%s)",
        *(store, len(files), moved.folder, some),
        extra=about("set_aside", folder=moved.folder, files=tuple(files)),
    )
    return moved


def read_set_aside(store: Path) -> list[SetAside]:
    """The files set aside in the store in this folder and not removed since, oldest first."""
    found: list[SetAside] = []
    for name in (_REPORT, _RECORDED):
        for report in (store / _FOLDER).glob(f"*/{name}"):
            folder, files = report.parent, _read(report)
            # Power may have failed before all were moved: what is still where it was is no longer concerned.
            there = {file: str(what) for file, what in files.items() if (folder / file).exists()}
            found.append(SetAside(f"{_FOLDER}/{folder.name}", there, name == _RECORDED))
    return sorted(found)


def _read(report: Path) -> dict[str, Any]:
    try:
        with report.open("rb") as file:
            files = json.loads(file.read(_MAX_REPORT_BYTES))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return files if isinstance(files, dict) else {}


def mark_recorded(store: Path, folder: str) -> None:
    """Mark that the log has the event of the files in `folder`. Raises OSError."""
    (store / folder / _REPORT).rename(store / folder / _RECORDED)
    sync_path(store / folder)
