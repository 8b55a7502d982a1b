"""Rounds of kills: processes that work on a store and are killed at every kind of moment, and what must hold after it.

    python -m tests.process.kill_rounds --rounds 1000 [--seed S] [--url URL] [--lanes 2]

A series of rounds shares one store, so that a round begins with what the kills before it left. `MOMENTS` names the
kinds of rounds. After each round the store is read as it is, and every promise proven; now and then, and at the end, it
is opened. Several lanes, each with its own zygote (kill_zygote.py), work side by side on stores of their own.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.process.kill_zygote import POINTS
from tests.process.kills import ROOT, START_LIMIT_S, Facts

__all__ = ["MOMENTS", "Outcome", "run_rounds"]

SERIES_ROUNDS: Final = 10
POLL_S: Final = 0.001
LIMIT_S: Final = 60.0
REPORT_BYTES: Final = (500, 20_000)


class Zygote:
    """A zygote, and the children that it forked."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._asking = asyncio.Lock()

    async def _ask(self, **question: Any) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._asking:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            answer = await self._process.stdout.readline()
        assert answer, "the zygote is gone"
        return int(answer)

    async def fork(self, **ask: Any) -> "Child":
        """A new child that does what is asked of it."""
        return Child(self, await self._ask(fork=ask), Path(ask["stderr"]))

    async def wait(self, pid: int) -> int:
        """Wait for the end of a child; returns its exit status."""
        return await self._ask(wait=pid)


class Child:
    """A forked child, watched through a descriptor of its process."""

    def __init__(self, zygote: Zygote, pid: int, stderr: Path) -> None:
        self._zygote = zygote
        self._pid = pid
        self._stderr = stderr
        self._fd = os.pidfd_open(pid)
        self._code: int | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self._code is not None or bool(select.select([self._fd], [], [], 0)[0])

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    async def until(self, condition: Callable[[], bool], limit_s: float = START_LIMIT_S) -> None:
        """Return when `condition` holds or the child has ended."""
        async with asyncio.timeout(limit_s):
            while not condition() and not self.has_ended:
                await asyncio.sleep(POLL_S)

    async def end(self) -> int:
        """Its exit code, once it has ended."""
        if self._code is None:
            await self.until(lambda: False, LIMIT_S)
            self._code = await self._zygote.wait(self._pid)
            os.close(self._fd)
        return self._code

    async def kill(self) -> int:
        """Kill it, whatever it does; returns how it ended."""
        if self._code is None:
            self.signal(signal.SIGKILL)
        return await self.end()

    async def is_killed(self, *, or_done: bool = False) -> None:
        """Kill it; an end of its own is a failure, unless it may be done by now."""
        code = await self.kill()
        assert code == -signal.SIGKILL or (or_done and code == 0), f"exit code {code}: {self.says()}"

    def says(self) -> str:
        """What it wrote about its troubles."""
        return self._stderr.read_text(errors="replace")


class Series:
    """Rounds on one store, and what was promised in them."""

    def __init__(self, zygote: Zygote, folder: Path, url: str, seed: int) -> None:
        self.folder = folder
        self.rng = random.Random(seed)
        self.rounds: Counter[str] = Counter()
        self._zygote = zygote
        self._url = url
        self._facts = Facts(folder)
        self._files = 0

    async def fork(self, task: str, **ask: Any) -> Child:
        """A child at work on this series' store."""
        self._files += 1
        common = {"task": task, "folder": str(self.folder), "url": self._url, "seed": self.rng.randrange(1 << 30)}
        choices = {"fsync": self.rng.random() < 0.5, "busy_files": self.rng.random() < 0.5, "at_work": False}
        return await self._zygote.fork(**common, **(choices | ask), stderr=str(self.folder / f"stderr-{self._files}"))

    async def reported(self, child: Child, report_bytes: tuple[int, int] = REPORT_BYTES) -> None:
        """Wait until a random number of bytes more is reported."""
        enough_bytes = self._facts.size_bytes + self.rng.randrange(*report_bytes)
        await child.until(lambda: self._facts.size_bytes >= enough_bytes)

    async def moment(self, max_ms: float) -> None:
        """A random while."""
        await asyncio.sleep(self.rng.random() * max_ms / 1000)

    async def play(self, rounds: int) -> None:
        """Play that many rounds and prove after each that all promises hold."""
        for number in range(rounds):
            moment = self.rng.choice([*MOMENTS])
            try:
                await MOMENTS[moment](self)
                await self.check(opening=number == rounds - 1 or self.rng.random() < 0.1)
            except BaseException as error:
                error.add_note(f"in round {number} of {self.folder}, killed in: {moment}")
                raise
            self.rounds[moment] += 1

    async def check(self, *, opening: bool) -> None:
        """Prove it all, in a process of its own."""
        child = await self.fork("check", opening=opening)
        code = await child.end()
        assert code == 0, child.says()

    @property
    def seen(self) -> Counter[str]:
        """The counts of the last check."""
        return Counter(json.loads((self.folder / "seen").read_text()))


async def in_load(series: Series) -> None:
    """Under load, most likely in a commit."""
    child = await series.fork("load")
    await series.reported(child)
    await child.is_killed()


async def in_opening(series: Series) -> None:
    """While the store is opened and taken over, or in the first moments after it."""
    child = await series.fork("load")
    await series.moment(60)
    await child.is_killed()


async def in_time(series: Series) -> None:
    """When leases end, late jobs fall due, and finished ones are swept."""
    child = await series.fork("load")
    await series.reported(child, (500, 1_000))
    await series.moment(900)
    await child.is_killed()


async def at_a_point(series: Series) -> None:
    """At a certain point of a certain commit, by its own hand; on other stores than files some never come."""
    child = await series.fork("load", point=series.rng.choice(POINTS), countdown=series.rng.randrange(1, 60))
    await series.reported(child, (20_000, 20_001))
    await child.is_killed()


async def in_closing(series: Series) -> None:
    """While the queue is closed, with its callers gone or still at work."""
    child = await series.fork("load", at_work=series.rng.random() < 0.5)
    await series.reported(child, (500, 4_000))
    child.signal(signal.SIGTERM)
    await series.moment(25)
    await child.is_killed(or_done=True)


async def in_takeover(series: Series) -> None:
    """While another process opens the store; then that one, too."""
    first = await series.fork("load", busy_files=False)
    await series.reported(first)
    second = await series.fork("load", busy_files=False, take_over=True)
    await series.moment(60)
    code = await first.kill()
    assert code == -signal.SIGKILL or "Fenced" in first.says(), first.says()
    await series.reported(second)
    await second.is_killed()


async def fenced(series: Series) -> None:
    """Not at all: another process takes over, the first must end by itself; then the second is killed."""
    first = await series.fork("fenced", busy_files=False)
    await series.reported(first)
    second = await series.fork("load", busy_files=False, take_over=True)
    code = await first.end()
    assert code == 0, first.says()
    await series.reported(second)
    await second.is_killed()


async def stopped(series: Series) -> None:
    """A round without a kill: the process is stopped under load, taken over, continued, and must end by itself."""
    first = await series.fork("fenced", busy_files=False)
    await series.reported(first)
    first.signal(signal.SIGSTOP)
    second = await series.fork("load", busy_files=False, take_over=True)
    await series.reported(second)
    first.signal(signal.SIGCONT)
    code = await first.end()
    assert code == 0, first.says()
    await second.is_killed()


async def in_rebuild(series: Series) -> None:
    """While damaged indexes are rebuilt, and in the rebuild of the rebuild; at last it comes to its end."""
    for damage in (True, False):
        mark = series.folder / "damaged"
        mark.unlink(missing_ok=True)
        child = await series.fork("rebuild", damage=damage)
        await child.until(mark.exists)
        await series.moment(40)
        await child.is_killed(or_done=True)
    last = await series.fork("rebuild", damage=False)
    assert await last.end() == 0, last.says()


MOMENTS: Final[dict[str, Callable[[Series], Any]]] = {
    "load": in_load,
    "opening": in_opening,
    "time": in_time,
    "point": at_a_point,
    "closing": in_closing,
    "takeover": in_takeover,
    "fenced": fenced,
    "stopped": stopped,
    "rebuild": in_rebuild,
}


class Outcome:
    """What all rounds together came to."""

    def __init__(self) -> None:
        self.rounds: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()

    def add(self, series: Series) -> None:
        """Count a series that is over."""
        self.rounds += series.rounds
        self.seen += series.seen


@asynccontextmanager
async def zygote() -> AsyncIterator[Zygote]:
    """A zygote for the block; its children end with it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "tests/process/kill_zygote.py")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        yield Zygote(process)
    finally:
        process.kill()
        await process.wait()


async def run_rounds(
    folder: Path,
    rounds: int,
    *,
    seed: int = 0,
    url: str | None = None,
    lanes: int = 2,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Play that many rounds, in series of `SERIES_ROUNDS`; `url`: a place for the stores other than the folder."""
    outcome = Outcome()
    sizes = [min(SERIES_ROUNDS, rounds - begun) for begun in range(0, rounds, SERIES_ROUNDS)]
    waiting = list(enumerate(sizes))

    async def lane() -> None:
        async with zygote() as mine:
            while waiting:
                number, size = waiting.pop(0)
                place = folder / f"series-{number}"
                place.mkdir()
                store = (place / "store").as_uri() if url is None else f"{url.rstrip('/')}/series-{number}"
                series = Series(mine, place, store, seed * 1_000_003 + number)
                await series.play(size)
                outcome.add(series)
                told(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
    return outcome


def main(arguments: Sequence[str] | None = None) -> None:
    """Rounds by hand; the folder stays when something was found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.process.kill_rounds", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--url", help="a folder or a bucket's prefix that is there, for the stores; a new folder by default"
    )
    parser.add_argument("--lanes", type=int, default=2)
    options = parser.parse_args(arguments)
    folder, began_s = Path(tempfile.mkdtemp(prefix="ledgerq-kills-")), time.monotonic()

    def told(outcome: Outcome) -> None:
        print(f"{time.monotonic() - began_s:7.0f} s  {outcome.rounds.total()} rounds", flush=True)

    print(f"in {folder}")
    outcome = asyncio.run(
        run_rounds(folder, options.rounds, seed=options.seed, url=options.url, lanes=options.lanes, told=told)
    )
    shutil.rmtree(folder)
    print("rounds:", dict(outcome.rounds))
    print("seen:", dict(outcome.seen))


if __name__ == "__main__":
    main()
