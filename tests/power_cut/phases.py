"""The phases of a store while its system calls are recorded, and the recordings."""

import json
import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.power_cut.kernel_files import Notes, Tree, renew_notes, tree_of, true_notes, write_tree
from tests.power_cut.load_child import Ask
from tests.power_cut.recorded_disk import Disk
from tests.power_cut.system_calls import Call, read_calls, record
from tests.process.clock_faked import LIBRARY

__all__ = ["PHASES", "Recording", "Replay", "Start", "record_phase"]

ROOT: Final = Path(__file__).resolve().parents[2]
RECORD_LIMIT_S: Final = 120.0

# The upkeep syncs and collects as often as this; what is collected is old.
_FLUSHES: Final[dict[str, Any]] = {"max_wal_flushes_before_l0_flush": 8, "gc_interval_s": 0.1}
_COMPACTION: Final[dict[str, Any]] = {
    **_FLUSHES,
    "settings": {
        "compactor_options.poll_interval": "20ms",
        "compactor_options.worker.compactions_poll_interval": "20ms",
    },
}
_COLLECTION: Final[dict[str, Any]] = {**_COMPACTION, "gc_age_s": 0.05}


class Phase(NamedTuple):
    """The processes that work on a store one after the other, and the mark from which on power may be cut.

    `prepares`: processes that come before, whose work was on the disk long ago. `from_cuts`: the phases, after a cut
    in one of which it begins.
    """

    asks: tuple[Ask, ...]
    mark: str = ""
    prepares: tuple[Ask, ...] = ()
    from_cuts: tuple[str, ...] = ()


_PREPARED: Final[tuple[Ask, ...]] = ({"task": "load", "facts": 120, "closes": True, "store": _FLUSHES},)
# SlateDB's compactor keeps for 15 minutes what it replaced.
_LONG_AGO: Final[tuple[Ask, ...]] = (
    {"task": "load", "facts": 400, "closes": True, "past": "-20m", "store": _COMPACTION},
)
_HARMED: Final[tuple[Ask, ...]] = (*_PREPARED, {"task": "damage"})

PHASES: Final[dict[str, Phase]] = {
    "create": Phase(({"task": "load", "facts": 10},)),
    "steady": Phase(({"task": "load", "facts": 300},)),
    "flush": Phase(({"task": "load", "facts": 300, "store": _FLUSHES},)),
    "compact": Phase(({"task": "load", "facts": 400, "store": _COMPACTION},)),
    "collect": Phase(({"task": "load", "facts": 600, "is_brisk": True, "store": _COLLECTION},)),
    "expire": Phase(({"task": "load", "facts": 200, "store": _COLLECTION},), prepares=_LONG_AGO),
    "close": Phase(({"task": "load", "facts": 100, "store": _FLUSHES, "closes": True},), "closing"),
    "reopen": Phase(
        tuple({"task": "load", "facts": facts, "store": _FLUSHES} for facts in (100, 30, 30, 100)), "opening\nopening"
    ),
    "rebuild": Phase(({"task": "rebuild"},), "rebuilding", prepares=_HARMED),
    "copy": Phase(({"task": "copy"},), "rebuilding", prepares=_PREPARED),
    "heal": Phase(({"task": "load", "facts": 60, "store": _COLLECTION},), from_cuts=("collect", "flush", "create")),
}


class Start(NamedTuple):
    """A disk after a cut, what was promised on it, and the notes that are true."""

    tree: Tree
    facts: bytes
    notes: Notes

    def lay_out(self, folder: Path) -> None:
        """Put its files into a folder."""
        write_tree(self.tree, folder)
        renew_notes(folder, self.notes)


class Recording(NamedTuple):
    """The recorded calls of one phase's processes, in a folder of its own."""

    folder: Path
    phase: str

    @property
    def traces(self) -> list[Path]:
        """One for each process."""
        return sorted(self.folder.glob("trace-*"))

    def replay(self) -> "Replay":
        """From its beginning."""
        return Replay(self)

    @property
    def facts_before(self) -> bytes:
        """What was promised before it began."""
        return (self.folder / "facts-before").read_bytes()

    @property
    def notes_before(self) -> Notes:
        """The notes that were true then."""
        texts = json.loads((self.folder / "notes-before").read_text())
        return {bytes.fromhex(note): bytes.fromhex(manifest) for note, manifest in texts.items()}


class Replay:
    """The disk at one moment of a recording: after so many of its calls."""

    def __init__(self, recording: Recording) -> None:
        folder = recording.folder
        sinks = {"facts": folder / "facts", "marks": folder / "marks"}
        self.disk = Disk(folder / "disk", sinks=sinks, tree=tree_of(folder / "disk-before"))
        self.disk.sinks["facts"] += recording.facts_before
        self.disk.notes |= recording.notes_before
        self.moment = 0
        self._calls = self._all_calls(recording)

    def _all_calls(self, recording: Recording) -> Iterator[Call]:
        for trace in recording.traces:
            self.disk.restart()
            yield from read_calls(trace)

    def steps(self) -> Iterator[tuple[Call, bool]]:
        """Go on call by call; whether it changed anything."""
        for call in self._calls:
            self.moment += 1
            yield call, self.disk.step(call)

    def until(self, moment: int) -> None:
        """Go on to a later moment."""
        steps = self.steps()
        while self.moment < moment:
            next(steps)

    def cut(self, model: str, rng: random.Random) -> Start:
        """What a power cut leaves now, and what was promised before it."""
        return Start(self.disk.after_a_cut(model, rng), bytes(self.disk.sinks["facts"]), self.disk.notes)


def record_phase(
    folder: Path,
    phase: str,
    seed: int,
    *,
    start: Start | None = None,
    sync_us: int = 0,
    fsync: bool = True,
) -> Recording:
    """Play a phase in an empty folder; `start`: what it begins with.

    Each sync takes `sync_us` longer than it does; without `fsync` there is none.
    """
    plan, rng = PHASES[phase], random.Random(f"{phase} {seed}")
    disk = folder / "disk"
    disk.mkdir(parents=True)
    (folder / "facts").touch()
    if start is not None:
        start.lay_out(disk)
        (folder / "facts").write_bytes(start.facts)
    for ask in plan.prepares:
        _run(folder, {**ask, "seed": rng.randrange(1 << 30)}, trace=None)
    shutil.copytree(disk, folder / "disk-before")
    shutil.copy(folder / "facts", folder / "facts-before")
    notes = {note.hex(): manifest.hex() for note, manifest in true_notes(disk).items()}
    (folder / "notes-before").write_text(json.dumps(notes))
    (folder / "marks").unlink(missing_ok=True)
    for number, ask in enumerate(plan.asks):
        seeded: Ask = {**ask, "seed": rng.randrange(1 << 30)}
        if not fsync:
            seeded["store"] = {**ask.get("store", {}), "fsync": False}
        _run(folder, seeded, trace=folder / f"trace-{number}", sync_us=sync_us)
    return Recording(folder, phase)


def _run(folder: Path, ask: Ask, trace: Path | None, *, sync_us: int = 0) -> None:
    command = [sys.executable, "-m", "tests.power_cut.load_child", str(folder), json.dumps(ask)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    if "past" in ask and LIBRARY is not None:
        # Without the library nothing is old enough, and so a little less is removed.
        environment |= {"LD_PRELOAD": str(LIBRARY), "FAKETIME": ask["past"], "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    code, said = record(command, trace, environment=environment, limit_s=RECORD_LIMIT_S, sync_us=sync_us)
    is_killed = ask["task"] == "load" and not ask.get("closes")
    if code != (-9 if is_killed else 0):
        (folder / "ended-badly").write_text(f"exit code {code}: {said}")
