"""Power cuts for real: a file system is cut off under load, mounted again, and the store in it opened.

    python -m tests.power_cut.real_cuts [--cuts N] [--fs ext4] [--life-s LEAST MOST] [--callers N] [--images DIR]
    [--seed S]

A series of cuts shares one file system and one store, so that a life begins with what the cuts before it left; after a
cut that the store doesn't survive, it begins anew. `LIVES` names the ways to be cut off.

The program goes into a mount namespace of its own first, so that nothing stays mounted when it ends, however it ends.
It exits with 1 when a store did not survive a cut, with 2 when nothing can be mounted and cut off here.
"""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.power_cut.cuts import scratch_folder
from tests.power_cut.mounts import FILE_SYSTEMS, Mount, mounted, why_no_mounts
from tests.process.kill_rounds import Series, Zygote, zygote

__all__ = ["Cuts", "Plan", "run_cuts"]

SERIES_CUTS: Final = 8
# Journals that are written often, and names that don't wait for data: more of what a cut can tear apart.
MOUNT_OPTIONS: Final = {"ext4": ("", "commit=1,noauto_da_alloc"), "xfs": ("",)}
# What is collected how often: as by default, and as often as it can be.
STORES: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"max_wal_flushes_before_l0_flush": 32, "gc_interval_s": 0.2, "gc_age_s": 0.05},
    {"max_wal_flushes_before_l0_flush": 200, "gc_interval_s": 2.0, "gc_age_s": 0.5},
)


class Plan(NamedTuple):
    """How long a life under load lasts, how many callers enqueue and how many work (None: any of some), and where
    the image files are.
    """

    life_s: tuple[float, float] = (0.1, 1.0)
    callers: int | None = None
    images: Path | None = None


class CutSeries(Series):
    """Lives on one store, each ended by a cut."""

    def __init__(self, zygote: Zygote, folder: Path, mount: Mount, seed: int, plan: Plan) -> None:
        super().__init__(zygote, folder, (mount.folder / "store").as_uri(), seed)
        self._mount = mount
        self._plan = plan

    async def begin(self, task: str, **ask: Any) -> Any:
        """A child at work with syncs."""
        callers = self._plan.callers or self.rng.choice((1, 4, 16))
        more = {"callers": callers, "store": self.rng.choice(STORES)}
        return await self.fork(task, fsync=True, busy_files=False, **more, **ask)

    async def life(self) -> None:
        """A random while."""
        await asyncio.sleep(self.rng.uniform(*self._plan.life_s))

    async def cut(self, child: Any) -> None:
        """Cut the power; what the child tries after it is of no use."""
        self._mount.cut()
        await child.kill()
        self._mount.detach()
        self._mount.attach()

    async def survive(self, life: Callable[["CutSeries"], Any]) -> None:
        """One life, and the proof that everything promised in it and in those before it is there."""
        await life(self)
        await self.check(opening=True)


async def under_load(series: CutSeries) -> None:
    """Under load."""
    child = await series.begin("load")
    await series.reported(child, (200, 201))
    await series.life()
    await series.cut(child)


async def in_opening(series: CutSeries) -> None:
    """While the store is opened, or soon after."""
    child = await series.begin("load")
    await series.moment(100)
    await series.cut(child)


async def in_closing(series: CutSeries) -> None:
    """While the queue is closed."""
    child = await series.begin("load", at_work=series.rng.random() < 0.5)
    await series.reported(child, (500, 4_000))
    child.signal(15)
    await series.moment(40)
    await series.cut(child)


async def in_rebuild(series: CutSeries) -> None:
    """While damaged indexes are rebuilt; then the rebuild comes to its end."""
    mark = series.folder / "damaged"
    mark.unlink(missing_ok=True)
    child = await series.begin("rebuild", damage=True)
    await child.until(mark.exists)
    await series.moment(60)
    await series.cut(child)
    last = await series.begin("rebuild", damage=False)
    assert await last.end() == 0, last.says()


LIVES: Final[dict[str, Callable[[CutSeries], Any]]] = {
    "load": under_load,
    "opening": in_opening,
    "closing": in_closing,
    "rebuild": in_rebuild,
}
_ODDS: Final = (5, 1, 2, 2)
_INSIDE: Final = "POWER_CUT_NAMESPACE"


class Cuts:
    """What came of all cuts, by file system and the life that was cut."""

    def __init__(self) -> None:
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.failed: list[tuple[str, str, str]] = []

    def lines(self) -> list[str]:
        """A table, and the messages."""
        rows = ["| file system, cut in | cuts | failed |", "|---|---|---|"]
        for (kind, life), count in sorted(self.cuts.items()):
            failed = sum(failure[:2] == (kind, life) for failure in self.failed)
            rows.append(f"| {kind}, {life} | {count} | {failed} |")
        said = Counter(said.strip().splitlines()[-1][:300] for _, _, said in self.failed)
        return [*rows, "", *(f"{count:6} {text}" for text, count in said.most_common(20))]


async def run_cuts(kinds: Sequence[str], cuts: int, *, seed: int, plan: Plan) -> Cuts:
    """So many cuts, as many on each kind of file system; the kinds go on side by side."""
    result = Cuts()

    async def lane(number: int, kind: str, share: int) -> None:
        rng = random.Random(f"{seed} {kind}")
        async with zygote() as forks:
            while share:
                share -= await _series(forks, kind, min(share, SERIES_CUTS), rng, plan, result)

    async with asyncio.TaskGroup() as group:
        for number, kind in enumerate(kinds):
            share = cuts // len(kinds) + (number < cuts % len(kinds))
            group.create_task(lane(number, kind, share))
    return result


async def _series(forks: Zygote, kind: str, most: int, rng: random.Random, plan: Plan, result: Cuts) -> int:
    """Cuts on one file system, until one is not survived; how many there were."""
    with tempfile.TemporaryDirectory(dir=plan.images or scratch_folder()) as name:
        place = Path(name)
        (place / "facts-of").mkdir()
        with mounted(kind, place, rng.choice(MOUNT_OPTIONS[kind])) as mount:
            series = CutSeries(forks, place / "facts-of", mount, rng.randrange(1 << 30), plan)
            for number in range(most):
                life = "load" if number == 0 else rng.choices([*LIVES], _ODDS)[0]
                result.cuts[kind, life] += 1
                try:
                    await series.survive(LIVES[life])
                except (AssertionError, TimeoutError) as error:
                    result.failed.append((kind, life, str(error) or repr(error)))
                    return number + 1
    return most


def into_own_namespace() -> None:
    """Run this program anew where its mounts are its own, and end with the process that started it."""
    if os.geteuid() != 0 or _INSIDE in os.environ or not all(map(shutil.which, ("unshare", "setpriv"))):
        return
    own = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private")
    os.environ[_INSIDE] = "1"
    os.execvp(own[0], [*own, sys.executable, "-m", "tests.power_cut.real_cuts", *sys.argv[1:]])


def main() -> int:
    """The command line: cut."""
    parser = argparse.ArgumentParser(description="power cuts for real, on file systems in image files")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--fs", action="append", choices=FILE_SYSTEMS, help="both by default, where they can be had")
    parser.add_argument("--life-s", type=float, nargs=2, default=Plan().life_s)
    parser.add_argument("--callers", type=int, help="that enqueue, and as many that work")
    parser.add_argument("--images", type=Path, help="where image files are made; in memory by default")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    into_own_namespace()
    reasons = {kind: why_no_mounts(kind) for kind in asked.fs or FILE_SYSTEMS}
    able = [kind for kind, reason in reasons.items() if not reason]
    for reason in filter(None, reasons.values()):
        print(reason, file=sys.stderr)
    if not able:
        return 2
    begun_s = time.monotonic()
    plan = Plan(tuple(asked.life_s), asked.callers, asked.images)
    result = asyncio.run(run_cuts(able, asked.cuts, seed=asked.seed, plan=plan))
    print("\n".join(result.lines()))
    print(f"{result.cuts.total()} cuts in {time.monotonic() - begun_s:.0f} s, on {os.cpu_count()} cores")
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
