"""Power cuts at any moment of recorded work on a file store, and whether everything that was promised is there after.

    python -m tests.power_cut.cuts [--states N] [--model M] [--phase P] [--seed S] [--salvage] [--keep FOLDER]

`--salvage` has each store salvaged as it was left, before it is opened: what it makes must hold all that was promised.
`--states` is for each model; models are in kernel_files.py, phases in phases.py. Moments, and what is lost
at them, follow from the seed and the recording. `--keep` keeps the recordings, which are used again when they are
there, and the disks of states that failed, each with its report.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.power_cut.kernel_files import MODELS
from tests.power_cut.opener_child import OUTCOMES, Answer, State
from tests.power_cut.phases import PHASES, ROOT, Recording, record_phase
from tests.power_cut.system_calls import Call, why_not

__all__ = ["Explored", "Moments", "explore", "record_all", "scratch_folder"]

# Whatever an opener does within its own limits, and no more.
ANSWER_LIMIT_S: Final = 150.0
# SlateDB keeps some memory of each store that it could not open.
STATES_PER_OPENER: Final = 250
# How far after something that seldom happens a moment is chosen.
NEAR_CHANGES: Final = 12
PROGRESS_STATES: Final = 500
MOST_TRIES: Final = 6
SLOW_SYNC_US: Final = 5_000
RARE: Final = (b"/manifest/", b"/compacted", b"/compactions", b"/gc", b"/anchor", b"/set-aside", b"/new", b"/preflight")
RARE_CALLS: Final = ("link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir")


class Moments(NamedTuple):
    """After how many of a recording's calls power may be cut; `rare`: places in `all` of what seldom happens."""

    all: list[int]
    rare: list[int]

    def choose(self, rng: random.Random) -> int:
        """One of them; every other time one soon after something that seldom happens."""
        if self.rare and rng.random() < 0.5:
            return self.all[min(rng.choice(self.rare) + rng.randrange(NEAR_CHANGES), len(self.all) - 1)]
        return rng.choice(self.all)


def moments_of(recording: Recording) -> Moments:
    """All moments of a recording from the mark on."""
    replay, begins = recording.replay(), PHASES[recording.phase].mark.encode()
    moments, rare = [0] if not begins else [], []
    for call, changes in replay.steps():
        if changes and begins in bytes(replay.disk.sinks["marks"]):
            moments.append(replay.moment)
            if is_rare(call):
                rare.append(len(moments) - 1)
    return Moments(moments, rare)


def is_rare(call: Call) -> bool:
    """Whether it changes the names of files that are not written with each commit, or removes any."""
    paths = [argument for argument in call.arguments if isinstance(argument, bytes)]
    if call.name not in RARE_CALLS:
        return False
    is_removal = call.name.startswith("unlink") and not any(b"#" in path for path in paths)
    return is_removal or any(part in path for path in paths for part in RARE)


class Explored:
    """The outcomes of all states."""

    def __init__(self) -> None:
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.failed: list[tuple[State, Answer]] = []

    def add(self, state: State, answer: Answer) -> None:
        """Count one."""
        self.outcomes[state.model, state.phase, answer["outcome"]] += 1
        if answer["outcome"] != "fine":
            self.failed.append((state, answer))

    def lines(self) -> list[str]:
        """Two tables, and the commonest messages."""
        models = [model for model in MODELS if self._count(model)]
        phases = [phase for phase in PHASES if any(self._count(model, phase=phase) for model in MODELS)]
        by_outcome = [[self._count(model, outcome=outcome) for outcome in OUTCOMES] for model in models]
        by_phase = [[self._failed_of_all(model, phase) for phase in phases] for model in models]
        return [
            *_table("model", models, OUTCOMES, by_outcome),
            "",
            *_table("failed of states", models, phases, by_phase),
            "",
            *(f"{count:6} {text}" for text, count in self._messages().most_common(25)),
        ]

    def _count(self, model: str, *, phase: str = "", outcome: str = "") -> int:
        keys = (key for key in self.outcomes if key[0] == model and phase in ("", key[1]) and outcome in ("", key[2]))
        return sum(self.outcomes[key] for key in keys)

    def _failed_of_all(self, model: str, phase: str) -> str:
        states = self._count(model, phase=phase)
        return f"{states - self._count(model, phase=phase, outcome='fine')} of {states}"

    def _messages(self) -> Counter[str]:
        return Counter(f"{answer['outcome']}: {_without_names(answer['said'])}" for _, answer in self.failed)


def _table(title: str, rows: Sequence[str], columns: Collection[str], cells: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return [*lines, *(f"| {row} | " + " | ".join(map(str, line)) + " |" for row, line in zip(rows, cells, strict=True))]


def _without_names(said: str) -> str:
    """A message with neither numbers nor names of files, so that like ones can be counted."""
    last = said.strip().splitlines()[-1] if said.strip() else ""
    words = [re.sub(r"[0-9A-Z]{26}|\d+|/\S+/disk", "0", word) for word in last.split() if "file://" not in word]
    return " ".join(words)[:150]


class Opening:
    """One opener process, begun anew now and then, and whenever it hangs."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._process: asyncio.subprocess.Process | None = None
        self._left = 0

    async def answer(self, state: State, kept: Path | None) -> Answer:
        """The outcome of a state."""
        if self._process is None or self._left == 0:
            await self.end()
            self._scratch.mkdir(parents=True)
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.power_cut.opener_child", str(self._scratch)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )
            self._left = STATES_PER_OPENER
        self._left -= 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        ask = {"state": state, "kept": None if kept is None else str(kept)}
        self._process.stdin.write(json.dumps(ask).encode() + b"\n")
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.end()
            return Answer(outcome="hung", said=f"without an answer for {ANSWER_LIMIT_S:g} s")
        if not line:
            code = await self._process.wait()
            await self.end()
            return Answer(outcome="broken", said=f"the process ended with {code}")
        answer: Answer = json.loads(line)
        return answer

    async def end(self) -> None:
        """End the process."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None
        shutil.rmtree(self._scratch, ignore_errors=True)


def scratch_folder() -> str | None:
    """A place for disks that are made and dropped by the thousand: in memory where that can be had."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def record_all(folder: Path, phases: Sequence[str], seed: int, *, each: int = 1) -> list[Recording]:
    """Recordings of these phases, `each` so many times, every other time on a disk whose syncs are slow."""
    recordings: list[Recording] = []
    for number, phase in itertools.product(range(each), phases):
        place, sync_us = folder / f"{phase}-{number}", SLOW_SYNC_US if number % 2 else 0
        if PHASES[phase].from_cuts:
            made = record_after_a_cut(place, phase, recordings, seed + number, sync_us)
        else:
            made = record_phase(place, phase, seed + number, sync_us=sync_us)
        recordings.append(made)
    return recordings


def record_after_a_cut(folder: Path, phase: str, made: Sequence[Recording], seed: int, sync_us: int) -> Recording:
    """Record an opening that had to set files aside; `made`: recordings to begin with a cut in."""
    rng = random.Random(f"{phase} {seed}")
    name = rng.choice(PHASES[phase].from_cuts)
    first = next((recording for recording in made if recording.phase == name), None)
    first = first or record_phase(folder.with_name(f"before-{folder.name}"), name, seed)
    for _ in range(MOST_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        replay = first.replay()
        replay.until(moments_of(first).choose(rng))
        start = replay.cut(rng.choice(("half", "zeros", "mixed")), rng)
        recording = record_phase(folder, phase, seed, start=start, sync_us=sync_us)
        if (folder / "disk" / "store" / "set-aside").exists():
            break
    return recording


def recordings_in(folder: Path, phases: Sequence[str]) -> list[Recording]:
    """Those of an earlier run."""
    found = sorted(folder.glob("*")) if folder.exists() else []
    return [Recording(path, path.name.partition("-")[0]) for path in found if path.name.partition("-")[0] in phases]


def states_of(
    recordings: Sequence[Recording], models: Sequence[str], count: int, seed: int, *, salvaged: bool = False
) -> list[State]:
    """So many states of each model, over all recordings in turn."""
    states = []
    for number, recording in enumerate(recordings):
        moments, rng = moments_of(recording), random.Random(f"{seed} {number}")
        share = range(number, count, len(recordings))
        chosen = sorted((moments.choose(rng), model, i) for model in models for i in share)
        folder, phase = str(recording.folder), recording.phase
        states += [State(folder, phase, moment, model, i, salvaged) for moment, model, i in chosen]
    return states


async def explore(
    states: Sequence[State], scratch: Path, *, jobs: int, keep: Path | None = None, most_kept: int = 20
) -> Explored:
    """Open the store in each state, in `jobs` processes."""
    explored, numbers = Explored(), itertools.count()

    async def work(number: int, mine: Sequence[State]) -> None:
        opening = Opening(scratch / f"opener-{number}")
        try:
            for state in mine:
                kept = keep / f"{next(numbers)}" if keep and len(explored.failed) < most_kept else None
                explored.add(state, await opening.answer(state, kept))
                done = explored.outcomes.total()
                if done % PROGRESS_STATES == 0:
                    print(f"{done} of {len(states)} states, {len(explored.failed)} failed", file=sys.stderr)
        finally:
            await opening.end()

    share = -(-len(states) // jobs)
    async with asyncio.TaskGroup() as group:
        for number in range(jobs):
            group.create_task(work(number, states[number * share : (number + 1) * share]))
    return explored


def main() -> int:
    """The command line: explore."""
    parser = argparse.ArgumentParser(description="power cuts at any moment of recorded work on a file store")
    parser.add_argument("--states", type=int, default=200, help="of each model")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--phase", action="append", choices=PHASES)
    parser.add_argument("--recordings", type=int, default=2, help="of each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--salvage", action="store_true", help="salvage each store before it is opened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as name:
        folder = (asked.keep.absolute() if asked.keep else Path(name)) / "recordings"
        phases = asked.phase or [*PHASES]
        recordings = recordings_in(folder, phases) or record_all(folder, phases, asked.seed, each=asked.recordings)
        states = states_of(recordings, asked.model or MODELS, asked.states, asked.seed, salvaged=asked.salvage)
        begun_s = time.monotonic()
        explored = asyncio.run(explore(states, Path(name), jobs=asked.jobs, keep=asked.keep))
        took_s = time.monotonic() - begun_s
    print("\n".join(explored.lines()))
    print(f"{len(states)} states in {took_s:.0f} s, {len(states) / took_s:.1f} a second")
    return 1 if explored.failed else 0


if __name__ == "__main__":
    sys.exit(main())
