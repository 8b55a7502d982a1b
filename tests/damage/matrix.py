"""The damage matrix: every object of a store harmed in every way, with ledgerq's outcome: the table in docs/.

    python -m tests.damage.matrix [--all] [--jobs N] [--only TEXT] [--verbose]

Two stores of one history are built: `crashed`, whose last commits are only in the write-ahead log, and `closed`, whose
last writer closed and whose old files were collected, so that each file that is left counts. A case is one damage done
to a fresh copy of one of them. Child processes (cases_child.py) audit, open and rebuild such copies, and each case
ends as one of

    unharmed  the audit is clean, and every row is what it was
    healed    opening set files aside that nothing promised depends on, and everything is there
    rebuilt   the damage was found and named, and after a rebuild every row follows from what the log holds
    salvaged  refused by clear errors, with nothing written, and salvaged whole: everything promised came back
    in part   the same, but the files hold less than was promised, and the salvage's report names what is lost
    refused   the same, and no event at all could be salvaged
    wrong     anything else: a lost tail passed over, a hang, a crash, an exception that is not ours

With `--all` every case there is; without, a sample that has each kind of object and damage in it.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slatedb.uniffi import AdminBuilder, GarbageCollectorDirectoryOptions, GarbageCollectorOptions, ObjectStore

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.claims import Claim
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue

__all__ = [
    "END_MS",
    "Case",
    "Result",
    "all_cases",
    "build_stores",
    "harmed_copy",
    "run_cases",
    "run_commands",
    "sample_of",
    "scratch_folder",
    "table",
]

ROOT = Path(__file__).resolve().parents[2]
BASE_MS = 1_700_000_000_000
SESSIONS = 5
SESSION_MS = 6_000
FLIPS = 16
COMMANDS = {
    "audit": ("audit", "--deep"),
    "rebuild": ("rebuild-projections", "--take-over", "--actor", "ann"),
}
OUTCOMES = ("unharmed", "healed", "rebuilt", "salvaged", "in part", "refused", "wrong")
CASE_LIMIT_S = 180.0
START_LIMIT_S = 60.0
COMPACTION_LIMIT_S = 90.0
# When the history ends: nothing is due then, so a queue that is opened does nothing by itself.
END_MS = BASE_MS + (SESSIONS + 2) * SESSION_MS
# The folders of a store.
KINDS = ("manifest", "wal", "compacted", "compactions", "gc")


class Case(NamedTuple):
    """One damage: to the object at `path`, with another object's path, a bit's number, or nothing besides."""

    store: str
    kind: str
    damage: str
    path: str
    place: int
    argument: int | str | None = None
    is_newest_byte: bool = False

    @property
    def name(self) -> str:
        """The same in every run, though SlateDB gives some files names of chance."""
        where = "" if self.kind in ("anchor", "store") else f" {self.place}"
        what = f" {self.argument}" if isinstance(self.argument, int) else ""
        return f"{self.store}: {self.kind}{where}: {self.damage}{what}"


class Result(NamedTuple):
    """The outcome of a case, and its messages; `panicked`: SlateDB printed a panic before the clear error."""

    case: Case
    outcome: str
    said: dict[str, str]
    seconds: float
    peak_rss_kib: int = 0
    panicked: bool = False

    def describe(self) -> str:
        """Some lines, with the way to do it again."""
        again = f"python -m tests.damage.matrix --all --verbose --only {self.case.name!r}"
        said = "".join(f"\n    {step}: {text[:2000]}" for step, text in self.said.items())
        return f"{self.outcome}: {self.case.name} ({self.seconds:.1f} s)\n    again: {again}{said}"


# ---------------------------------------------------------------------- the stores


async def build_stores(root: Path) -> None:
    """Make `root`/crashed, `root`/closed, and `root`/older, which is a state of the same history some commits before.

    Several writers, jobs in every state, sweeps, payloads from none to 20,000 bytes, sorted runs made by compaction.
    """
    folder = root / "work"
    quick = {"compactor_options.poll_interval": "20ms", "compactor_options.worker.compactions_poll_interval": "20ms"}
    rng, clock = random.Random(5), ManualClock(BASE_MS)
    options: dict[str, Any] = {
        "clock": clock,
        "entropy": SeededEntropy(3),
        "store_options": StoreOptions(settings=quick),
        "default": QueueOptions(keep_done_s=5.0, backoff_base_s=1.0),
    }
    for session in range(SESSIONS):
        async with Queue.open(folder.as_uri(), **options) as queue:
            await _load(queue, clock, rng, session)
            if session == SESSIONS - 1:
                await _compacted(folder)
    queue = await Queue.open(folder.as_uri(), **options)
    await _load(queue, clock, rng, SESSIONS)
    shutil.copytree(folder, root / "older")
    await _load(queue, clock, rng, SESSIONS + 1)
    # A copy made while nothing is written is what a crash leaves.
    shutil.copytree(folder, root / "crashed")
    await queue.close()
    await _collect(folder)
    folder.rename(root / "closed")


async def _load(queue: Queue, clock: ManualClock, rng: random.Random, session: int) -> None:
    """About 400 transitions in few commits: jobs that end in every state, and some still held when the writer goes."""
    payloads = [rng.randbytes(rng.choice((0, 10, 40, 200))) for _ in range(80)]
    _, _, unique, _ = await asyncio.gather(
        queue.enqueue_many("mail", payloads),
        queue.enqueue_many("bulk", [rng.randbytes(10)] * 50),
        queue.enqueue("big", rng.randbytes(20_000), unique_key=f"key-{session}", headers={"a": "b"}),
        queue.enqueue("mail", b"later", delay=1e6),
    )
    first, bulk = await asyncio.gather(_claimed(queue, "mail", 70), _claimed(queue, "bulk", 45))
    await asyncio.gather(
        queue.ack_many(first[:60] + bulk),
        queue.nack(first[60], "boom", dead=True),
        queue.nack(first[61], "again", delay=3),
    )
    if session % 2:
        await queue.cancel(unique.job_id, actor="ann", reason="changed my mind")
    clock.advance(seconds=SESSION_MS / 1000)  # the leases' end is far, what was done is swept
    await queue.enqueue("mail", b"one more", priority=session)
    await _calm(queue)


async def _calm(queue: Queue) -> None:
    """Wait until maintenance has done what was due: the log has stood still for a while."""
    seen, since_s = await queue.log.head(), 0.0
    while since_s < 0.2:
        await asyncio.sleep(0.02)
        head = await queue.log.head()
        seen, since_s = head, (since_s + 0.02 if head == seen else 0.0)


async def _claimed(queue: Queue, name: str, count: int) -> list[Claim]:
    """So many claims; one call may bring fewer when payloads must be read first."""
    claims: list[Claim] = []
    while len(claims) < count:
        more = await queue.claim(name, limit=count - len(claims))
        assert more, f"{name} has only {len(claims)}"
        claims += more
    return claims


async def _compacted(folder: Path) -> None:
    """Wait until the compactor has made a sorted run and nothing changes any more."""
    loop = asyncio.get_running_loop()
    deadline, calm_since, seen = loop.time() + COMPACTION_LIMIT_S, loop.time(), set[str]()
    while loop.time() - calm_since < 0.5 or len(seen) <= SESSIONS:
        assert loop.time() < deadline, f"SlateDB did not compact: {sorted(seen)}"
        await asyncio.sleep(0.02)
        found = {path.name for path in (folder / "compacted").iterdir()}
        if found != seen:
            seen, calm_since = found, loop.time()


async def _collect(folder: Path) -> None:
    """Remove what no manifest needs any more, as the upkeep does after a minute."""
    location = parse_location(folder.as_uri())
    unused = GarbageCollectorDirectoryOptions(interval_ms=None, min_age_ms=1, dry_run=False)
    kinds = GarbageCollectorOptions(
        manifest_options=unused, wal_options=unused, compacted_options=unused, compactions_options=unused
    )
    await AdminBuilder(location.database, ObjectStore.resolve(location.root)).build().run_gc_once(kinds)


def harmed_copy(root: Path, case: Case | None, folder: Path, *, store: str = "") -> Path:
    """A new copy of the case's store with its damage done; without a case, an unharmed copy of `store`."""
    origin = root / (store if case is None else case.store)
    if case is not None and case.kind == "store":
        shutil.copytree(root / "older", folder, copy_function=_link)
        (folder / "anchor").unlink()
        shutil.copy(origin / "anchor", folder / "anchor")
        return folder
    shutil.copytree(origin, folder, copy_function=_link)
    if case is not None:
        DAMAGES[case.damage](root, folder, case)
    return folder


def _link(source: str, target: str) -> None:
    """SlateDB never changes a file in place, so a second name is a copy; anchor and lock are, and are ledgerq's own."""
    if Path(source).parent.name not in KINDS:
        shutil.copy(source, target)
    else:
        os.link(source, target)


# ---------------------------------------------------------------------- the damages


def _put(folder: Path, path: str, content: bytes) -> None:
    file = folder / path
    file.unlink()
    file.write_bytes(content)


def _changed(change: Callable[[bytes], bytes]) -> Callable[[Path, Path, Case], None]:
    return lambda root, folder, case: _put(folder, case.path, change((folder / case.path).read_bytes()))


def _delete(root: Path, folder: Path, case: Case) -> None:
    (folder / case.path).unlink()


def _flip(root: Path, folder: Path, case: Case) -> None:
    assert isinstance(case.argument, int)
    content = bytearray((folder / case.path).read_bytes())
    content[case.argument // 8] ^= 1 << case.argument % 8
    _put(folder, case.path, bytes(content))


def _swap(root: Path, folder: Path, case: Case) -> None:
    if case.kind == "anchor":
        content = (folder / case.path).read_bytes()
        _put(folder, case.path, content[4096:] + content[:4096])
        return
    other = str(case.argument)
    mine, its = (folder / case.path).read_bytes(), (folder / other).read_bytes()
    _put(folder, case.path, its)
    _put(folder, other, mine)


def _older(root: Path, folder: Path, case: Case) -> None:
    before = root / "older" / "anchor" if case.kind == "anchor" else folder / str(case.argument)
    _put(folder, case.path, before.read_bytes())


DAMAGES: dict[str, Callable[[Path, Path, Case], None]] = {
    "deleted": _delete,
    "cut to half": _changed(lambda content: content[: len(content) // 2]),
    "cut by a byte": _changed(lambda content: content[:-1]),
    "emptied": _changed(lambda content: b""),
    "zeros": _changed(lambda content: bytes(len(content))),
    "bit": _flip,
    "swapped": _swap,
    "older": _older,
}
_LABELS = {
    "deleted": "deleted",
    "cut to half": "cut to half",
    "cut by a byte": "cut by one byte",
    "emptied": "emptied",
    "zeros": "filled with zeros",
    "bit": "one bit flipped",
    "swapped": "swapped with another",
    "older": "older content put back",
}


def _objects(folder: Path, kind: str) -> list[str]:
    if kind == "anchor":
        return ["anchor"]
    return sorted(str(path.relative_to(folder)) for path in folder.glob(f"{kind}/*"))


def _flipped_bits(kind: str, name: str, size_bytes: int) -> list[int]:
    """The first byte, the last ones, and `FLIPS` that chance chose, the same in each run."""
    if size_bytes == 0:
        return []
    rng = random.Random(name)
    if kind == "anchor":  # two slots of 128 bytes, and nothing between them
        chosen = [rng.choice((0, 4096)) + rng.randrange(128) for _ in range(FLIPS)]
    else:
        chosen = [rng.randrange(size_bytes) for _ in range(FLIPS)]
    places = [0, size_bytes - 1, max(0, size_bytes - 6), *chosen]
    return sorted({8 * place + rng.randrange(8) for place in places})


def all_cases(root: Path) -> list[Case]:
    """Every case there is, in a fixed order."""
    return [case for store in ("crashed", "closed") for case in _cases_of(root, store)]


def _cases_of(root: Path, store: str) -> Iterator[Case]:
    folder = root / store
    for kind in (*KINDS, "anchor"):
        paths = _objects(folder, kind)
        for place, path in enumerate(paths):
            size_bytes = (folder / path).stat().st_size
            for damage in DAMAGES:
                if damage == "bit":
                    bits = _flipped_bits(kind, f"{store} {kind} {place}", size_bytes)
                    yield from (Case(store, kind, damage, path, place, bit) for bit in bits)
                elif kind != "anchor" and damage in ("swapped", "older"):
                    # The one before it, or of the first one the last.
                    if len(paths) > 1 and (place > 0 or damage == "swapped"):
                        yield Case(store, kind, damage, path, place, paths[place - 1])
                elif size_bytes or damage == "deleted":
                    yield Case(store, kind, damage, path, place)
    yield Case(store, "store", "older", "", 0)
    newest = _objects(folder, "manifest")[-1]
    rng = random.Random(f"{store} newest")
    for byte in range((folder / newest).stat().st_size):
        place = len(_objects(folder, "manifest")) - 1
        yield Case(store, "manifest", "bit", newest, place, 8 * byte + rng.randrange(8), True)


def sample_of(cases: Sequence[Case], *, each: int, every_byte_of: str, newest: int = 3) -> list[Case]:
    """Of each kind and damage the newest objects' cases and `each` more; each byte of one store's newest manifest."""
    groups: dict[tuple[str, str, str], list[Case]] = {}
    for case in cases:
        if not case.is_newest_byte:
            groups.setdefault((case.store, case.kind, case.damage), []).append(case)
    chosen: set[Case] = set()
    for key, group in groups.items():
        rng = random.Random(" ".join(key))
        last = max(case.place for case in group)
        new = [case for case in group if case.place > last - newest]
        chosen.update(rng.sample(new, min(each, len(new))))
        chosen.update(rng.sample(group, min(each, len(group))))
    return [case for case in cases if case in chosen or (case.is_newest_byte and case.store == every_byte_of)]


# ---------------------------------------------------------------------- running them


class _Child:
    """One process that works through cases, until it hangs or crashes; then the next one takes its place."""

    def __init__(self, root: Path, number: int, before: str = "") -> None:
        self._root = root
        self._before = before
        self._stderr = root / f"stderr-{number}"
        self._read_bytes = 0
        self._process: asyncio.subprocess.Process | None = None

    async def run(self, case: Case) -> Result:
        if self._process is None:
            await self._start()
        began = time.monotonic()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        process.stdin.write(json.dumps(case).encode() + b"\n")
        answer = await self._line(CASE_LIMIT_S)
        seconds = time.monotonic() - began
        noise = self._noise()
        if isinstance(answer, str):
            return Result(case, "wrong", {"process": answer, "stderr": noise}, seconds)
        result = Result(case, answer["outcome"], answer["said"], seconds, answer["peak_rss_kib"])
        if not noise:
            return result
        if "panicked at" in noise and "Traceback" not in noise and result.outcome not in ("unharmed", "wrong"):
            return result._replace(panicked=True)
        return result._replace(outcome="wrong", said=result.said | {"stderr": noise})

    async def _start(self) -> None:
        with self._stderr.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-X",
                    "faulthandler",
                    "-m",
                    "tests.damage.cases_child",
                    str(self._root),
                    self._before,
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
            )
        ready = await self._line(START_LIMIT_S)
        assert ready == {"ready": True}, f"{ready}: {self._noise()}"

    async def _line(self, limit_s: float) -> Any:
        """Read the next answer, or why there is none."""
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(limit_s):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.stop()
            return f"hangs: no answer within {limit_s:g} s"
        if line:
            return json.loads(line)
        code = await self._process.wait()
        self._process = None
        return f"crashed with exit code {code}"

    def _noise(self) -> str:
        with self._stderr.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        self._read_bytes += len(text)
        return text.decode(errors="replace")

    async def stop(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None


async def run_cases(
    root: Path,
    cases: Sequence[Case],
    *,
    jobs: int = 2,
    told: Callable[[Result], None] | None = None,
    fresh: bool = False,
    before: str = "",
) -> list[Result]:
    """Run the cases in `jobs` processes, or each in a `fresh` one; the results come in the order of the cases.

    `before` is Python that each process executes first: it may take something away from ledgerq, to be missed.
    """
    waiting = iter(enumerate(cases))
    results: dict[int, Result] = {}

    async def work(number: int) -> None:
        child = _Child(root, number, before)
        try:
            for index, case in waiting:
                results[index] = await child.run(case)
                if fresh:
                    await child.stop()
                if told is not None:
                    told(results[index])
        finally:
            await child.stop()

    async with asyncio.TaskGroup() as group:
        for number in range(jobs):
            group.create_task(work(number))
    return [results[index] for index in sorted(results)]


async def run_commands(root: Path, cases: Sequence[Case], *, jobs: int = 2) -> list[Result]:
    """The same damages at the command line: `ledgerq audit` and `rebuild-projections`, each on a copy of its own."""
    waiting = iter(enumerate(cases))
    results: dict[int, Result] = {}

    async def work(number: int) -> None:
        scratch = root / f"commands-{number}"
        for index, case in waiting:
            began, said, outcome = time.monotonic(), dict[str, str](), "fine"
            for step, command in COMMANDS.items():
                folder = harmed_copy(root, case, scratch / f"{step}-{index}")
                said[step], fine = await _run_command([command[0], str(folder), *command[1:]])
                outcome = outcome if fine else "wrong"
                shutil.rmtree(scratch, ignore_errors=True)
            results[index] = Result(case, outcome, said, time.monotonic() - began)

    async with asyncio.TaskGroup() as group:
        for number in range(jobs):
            group.create_task(work(number))
    return [results[index] for index in sorted(results)]


async def _run_command(command: Sequence[str]) -> tuple[str, bool]:
    """Run a command line: its output, and whether it ended well: a known exit code, at most one line on stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ledgerq.tools.cli", *command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )
    try:
        async with asyncio.timeout(CASE_LIMIT_S):
            out, err = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"hangs: no end within {CASE_LIMIT_S:g} s", False
    text = err.decode(errors="replace")
    # Beside a result there is at most the one line about files that were set aside.
    told = sum("set-aside/" in line for line in text.splitlines()) if out else 0
    fine = process.returncode in (0, 1, 3) and len(text.splitlines()) == (min(told, 1) if out else 1)
    fine = fine and "Traceback" not in text
    return f"exit code {process.returncode}\n{text or out.decode(errors='replace')}", fine


def table(results: Sequence[Result]) -> str:
    """The counts by kind of object and damage, as Markdown."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for result in results:
        what = "each byte of the newest, one bit" if result.case.is_newest_byte else _LABELS[result.case.damage]
        if result.case.kind == "store":
            what = "an older one under the newest anchor"
        counts.setdefault((result.case.kind, what), Counter())[result.outcome] += 1
    total: Counter[str] = Counter()
    heads = ("object", "damage", "unharmed", "healed", "rebuilt", "salvaged", "salvaged in part", "refused", "wrong")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (kind, what), count in counts.items():
        total += count
        lines.append(f"| {kind} | {what} | " + " | ".join(str(count[name]) for name in OUTCOMES) + " |")
    lines.append("| all | | " + " | ".join(str(total[name]) for name in OUTCOMES) + " |")
    return "\n".join(lines)


def scratch_folder() -> str | None:
    """A folder where copies are cheap, if there is one."""
    memory = Path("/dev/shm")
    return str(memory) if os.access(memory, os.W_OK) else None


async def main(arguments: argparse.Namespace) -> int:
    """Build, run, print."""
    with tempfile.TemporaryDirectory(prefix="ledgerq-damage-", dir=arguments.dir or scratch_folder()) as name:
        root = Path(name)
        await build_stores(root)
        cases = all_cases(root)
        if not arguments.all:
            cases = sample_of(cases, each=2, every_byte_of="closed")
        cases = [case for case in cases if arguments.only in case.name]
        began = time.monotonic()
        done = 0

        def told(result: Result) -> None:
            nonlocal done
            done += 1
            if arguments.verbose or result.outcome == "wrong":
                print(result.describe(), flush=True)
            if done % 200 == 0:
                print(f"{done} of {len(cases)} cases, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

        results = await run_cases(root, cases, jobs=arguments.jobs, told=told)
        seconds = time.monotonic() - began
        typed = sample_of(cases, each=3 if arguments.all else 1, every_byte_of="")
        commands = await run_commands(root, typed, jobs=arguments.jobs)
    failed = [result for result in commands if result.outcome == "wrong"]
    for result in failed:
        print(result.describe())
    print(table(results))
    wrong = sum(result.outcome == "wrong" for result in results) + len(failed)
    panicked = sum(result.panicked for result in results)
    peak_mib = max((result.peak_rss_kib for result in results), default=0) // 1024
    slowest_s = max((result.seconds for result in results), default=0.0)
    print(
        f"\n{len(results)} cases in {seconds:.0f} s, {len(commands)} of them at the command line too; {wrong} wrong. "
        f"In {panicked} of those refused SlateDB printed a panic besides. At most {peak_mib} MiB in a process; the "
        f"slowest case took {slowest_s:.1f} s."
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.damage.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every case, not a sample")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes work")
    parser.add_argument("--only", default="", help="only cases with this in their name")
    parser.add_argument("--verbose", action="store_true", help="tell what was said in each case")
    parser.add_argument("--dir", help="where the stores are made (the default is in memory, if that is possible)")
    sys.exit(asyncio.run(main(parser.parse_args())))
