"""The long run: its judge on made-up series, its record on made-up logs, and the whole of it for some seconds."""

import asyncio
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog.errors import Fenced
from ledgerq.eventlog.events import (
    Acked,
    Cancelled,
    Claimed,
    Enqueued,
    Event,
    LeaseExpired,
    Nacked,
    QueuePaused,
    Record,
    Requeued,
    Swept,
    WriterOpened,
)
from ledgerq.eventlog.memory import MemoryDisk, MemoryStore
from ledgerq.worker.claims import Claim
from ledgerq.worker.queue import Queue
from tests.soak import report
from tests.soak.auditor import FactFiles
from tests.soak.conductor import Conductor, Plan
from tests.soak.drift import Tolerance, judge, theil_sen
from tests.soak.load import Counts, Load
from tests.soak.meter import Facts, Meter, held_by_process
from tests.soak.oracle import Oracle
from tests.soak.report import judge_all
from tests.soak.watched_queue import WatchedQueue, sealed

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 110
ALLOWED = Tolerance(floor=10, part=0.1)  # 20 for a series about 100

# ---------------------------------------------------------------------- the judge


def series(value: Callable[[int], float], count: int = 120) -> list[tuple[float, float]]:
    return [(10.0 * i, value(i)) for i in range(count)]


def noise(amplitude: float) -> Callable[[int], float]:
    rng = random.Random(7)
    values = [rng.uniform(-amplitude, amplitude) for _ in range(1000)]
    return lambda i: values[i]


NOISE = noise(30)


@pytest.mark.parametrize(
    ("verdict", "value"),
    [
        ("steady", lambda i: 100),
        ("steady", lambda i: 100 + NOISE(i)),
        ("steady", lambda i: 100 - i),
        ("steady", lambda i: 100 + i * 0.1),
        ("steady", lambda i: 100 * (1 - 0.9**i)),  # what fills up during the warm-up
        ("steady", lambda i: 100 + 80 * (i % 7) / 7),  # a sawtooth
        ("steady", lambda i: 100 + 80 * (i % 31) / 31),
        ("steady", lambda i: 1000 if i in (40, 41, 80, 119) else 100),
        ("steady", lambda i: 100 if i < 80 else 125),  # a step within what a step may be
        ("drift", lambda i: 100 + i * 0.5),
        ("drift", lambda i: 100 + i * 0.5 + NOISE(i)),
        ("drift", lambda i: 100 + 0.6 * i + 80 * (i % 7) / 7),
        ("drift", lambda i: 100 + 10 * (i // 12)),  # a staircase
        ("step", lambda i: 100 if i < 60 else 200),
        ("step", lambda i: 100 if i < 85 else 150),
        ("drift", lambda i: 100 if i < 75 else 150),  # just in the middle it is as steep as a slope
    ],
)
def test_the_judge_tells_a_drift_from_noise(verdict: str, value: Callable[[int], float]) -> None:
    found = judge("memory", "MiB", series(value), ALLOWED)
    assert found.verdict == verdict, found.text
    assert found.failed == (verdict != "steady")
    assert found.text.startswith(f"memory: {verdict}, ")


def test_the_judge_leaves_the_warm_up_out() -> None:
    growing = series(lambda i: 100 + min(i, 100))
    assert judge("x", "", growing, ALLOWED).failed
    assert judge("x", "", growing, ALLOWED, warm_up_s=1000).verdict == "steady"
    assert judge("x", "", growing, ALLOWED, warm_up_s=1150).verdict == "too few samples"
    assert judge("x", "", [], ALLOWED).text == "x: 0 samples after the warm-up are too few to judge"
    assert not judge("x", "", series(lambda i: 1000.0 * i, 10), ALLOWED).failed, "too few of them to say"


def test_the_slope_is_the_median_of_all_slopes() -> None:
    assert theil_sen([(0, 0), (1, 2), (2, 4), (3, 1000)]) == pytest.approx(2.0, abs=300)
    assert theil_sen(series(lambda i: 3 * i)) == pytest.approx(0.3)
    assert theil_sen([(5, 1), (5, 2)]) == 0
    assert judge("x", "", series(lambda i: i, 5000), ALLOWED).failed, "long series are thinned out"


def test_each_series_is_judged_in_the_processes_that_it_is_about() -> None:
    def sample(i: int, **changed: Any) -> dict[str, Any]:
        steady = dict.fromkeys(("rss_bytes", "fds", "blocks", "tasks", "threads", "python_threads", "backlog"), 100)
        latencies = {f"{what}_p{p}_ms": 5.0 for what in ("enqueue", "claim") for p in (50, 99)}
        store = {"objects": 50, "sorted": 5, "store_bytes": i * 60_000, "used_files": 3, "used_bytes": i * 60_000}
        name = "resident" if i % 5 else "guest-1"
        return {"time_s": 10.0 * i, "process": name, "offset": i * 1000, **steady, **latencies, **store, **changed}

    def failures(**changed: Callable[[int], float]) -> list[str]:
        samples = [sample(i, **{name: value(i) for name, value in changed.items()}) for i in range(200)]
        return [one.name for one in judge_all(samples, []) if one.failed]

    assert failures() == [], "the log's own growth is no drift"
    assert failures(rss_bytes=lambda i: i * 1e6) == ["memory (RSS)"]
    assert failures(rss_bytes=lambda i: 0 if i % 5 else i * 1e6) == [], "a process that is killed takes it along"
    assert failures(fds=lambda i: i) == ["open files"]
    assert failures(tasks=lambda i: i) == ["tasks"]
    assert failures(objects=lambda i: 10 * i) == ["objects of the store"]
    assert failures(used_bytes=lambda i: i * 1e6) == ["bytes in use beside the log"]
    assert failures(claim_p99_ms=lambda i: i) == ["claiming, p99"]


# ---------------------------------------------------------------------- the oracle

ID = bytes(16)
TEXT = "0" * 26
ENQUEUED = Enqueued(ID, "mail", 1000, 2, 0, None, "finished", 10, bytes(32))
CLAIMED = Claimed(ID, 1, 5000, None)
NACKED = Nacked(ID, "pending", 0, 0, False, "boom")
DEAD = Nacked(ID, "dead", 0, 9, False, "boom")


def oracle(*events: Event) -> Oracle:
    made = Oracle()
    for offset, event in enumerate(events):
        made.follow(Record(offset, 0, 1, event))
    return made


def other(event: Enqueued, **changed: Any) -> Enqueued:
    return replace(event, id=b"\1" * 16, **changed)


def keyed(event: Enqueued) -> Enqueued:
    return replace(event, unique_key=b"k")


@pytest.mark.parametrize(
    ("events", "facts"),
    [
        ((ENQUEUED, CLAIMED, Acked(ID, 9), Swept(ID)), ("E", "C 1", "A 1")),
        ((ENQUEUED, CLAIMED, NACKED, replace(CLAIMED, attempt=2)), ("E", "C 1", "N 1", "C 3")),
        ((ENQUEUED, CLAIMED, replace(NACKED, released=True), CLAIMED), ("E", "C 1", "R 1", "C 3")),
        ((ENQUEUED, CLAIMED, LeaseExpired(ID, "pending", 0, "lease expired")), ("C 1", "L 1")),
        ((ENQUEUED, Cancelled(ID, 9, "ann", "why")), ("X",)),
        ((ENQUEUED, CLAIMED, DEAD, Requeued(ID, "ann", "why"), CLAIMED), ("N 1", "Q", "C 4")),
        ((keyed(ENQUEUED), CLAIMED, Acked(ID, 9), other(keyed(ENQUEUED))), ("E", "A 1")),
        ((WriterOpened("me", "1", None), ENQUEUED), ("E",)),
    ],
)
def test_the_oracle_agrees_with_a_log_that_is_right(events: tuple[Event, ...], facts: tuple[str, ...]) -> None:
    found = oracle(*events)
    found.compare(fact.replace(fact[0], f"{fact[0]} {TEXT}", 1) for fact in facts)
    assert found.broken == []
    assert found.facts == len(facts)


@pytest.mark.parametrize(
    ("events", "fact", "message"),
    [
        ((WriterOpened("me", "1", None),), f"E {TEXT}", "was enqueued, but the log has no such job"),
        ((ENQUEUED,), f"C {TEXT} 1", "was claimed (claim 1), but the log does not say so"),
        ((ENQUEUED, CLAIMED), f"A {TEXT} 1", "was acked (claim 1), but the log does not say so"),
        ((ENQUEUED, CLAIMED, NACKED), f"A {TEXT} 1", "was acked"),
        ((ENQUEUED, CLAIMED, Acked(ID, 9)), f"N {TEXT} 1", "was nacked"),
        ((ENQUEUED, CLAIMED), f"L {TEXT} 1", "had lost its claim"),
        ((ENQUEUED,), f"X {TEXT}", "was cancelled"),
        ((ENQUEUED, CLAIMED, DEAD), f"Q {TEXT}", "was requeued"),
        ((ENQUEUED,), "! the payload is not what it was", "the payload is not what it was"),
        ((ENQUEUED, ENQUEUED), "", "is enqueued at 1 while it is pending"),
        ((CLAIMED,), "", "about a job that was never enqueued"),
        (
            (ENQUEUED, CLAIMED, Acked(ID, 9), replace(CLAIMED, attempt=2)),
            "",
            "Claimed at 3: the job " + ID.hex() + " is done",
        ),
        ((ENQUEUED, CLAIMED, replace(CLAIMED, attempt=2)), "", "is claimed, not"),
        ((ENQUEUED, CLAIMED, Acked(ID, 9), Acked(ID, 9)), "", "Acked at 3: the job " + ID.hex() + " is done"),
        ((ENQUEUED, Swept(ID)), "", "is pending, not"),
        ((ENQUEUED, CLAIMED, NACKED, CLAIMED), "", "the claim at 3 is attempt 2, recorded as 1"),
        ((replace(ENQUEUED, max_attempts=1), CLAIMED, NACKED), "", "nacked at 2 with no attempt left"),
        ((keyed(ENQUEUED), other(keyed(ENQUEUED))), "", "which " + ID.hex() + " holds"),
    ],
)
def test_the_oracle_names_what_was_broken(events: tuple[Event, ...], fact: str, message: str) -> None:
    found = oracle(*events)
    found.compare([fact] if fact else [])
    assert len(found.broken) == found.broken_count == 1
    assert message in found.broken[0]


def test_the_oracle_notices_a_gap_and_counters_that_are_wrong() -> None:
    found = oracle(ENQUEUED, QueuePaused("mail", "ann", "why"))
    found.compare_counts({"mail": {"pending": 1, "done": 0}}, {"mail": True})
    assert found.broken == []
    found.compare_counts({"mail": {"pending": 2}}, {"mail": False})
    found.follow(Record(3, 0, 1, other(ENQUEUED)))
    assert [line.split(",")[0] for line in found.broken] == [
        "queue 'mail' counts {'pending': 2}",
        "queue 'mail' has paused=False",
        "the log goes on at offset 3 instead of 2",
    ]


def test_the_oracle_forgets_what_was_swept_but_not_at_once() -> None:
    found = oracle(ENQUEUED, CLAIMED, Acked(ID, 9), Swept(ID))
    assert (found.alive, found.unfinished) == (0, 0)
    found.turn()
    found.compare([f"A {TEXT} 1"])
    assert found.broken == [], "the fact was written down after the file was read"
    found.turn()
    found.follow(Record(4, 0, 2, CLAIMED))
    assert len(found.broken) == 1, "nothing is remembered, and yet a job that comes back is noticed"


def test_facts_are_read_once_and_whole(tmp_path: Path) -> None:
    files = FactFiles(tmp_path)
    first, second = files.new(), files.new()
    facts = Facts(first)
    facts.report(["E a", "C a 1"])
    facts.report([])
    with second.open("ab") as file:
        file.write(b"E b\nE c")  # a kill has cut the second line off
    assert files.take([]) == ["E a", "C a 1", "E b"]
    facts.report(["A a 1"])
    facts.close()
    facts.report(["E d"])
    assert files.take([first]) == ["A a 1"]
    assert files.take([second]) == []
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- the load


@pytest.mark.proof
async def test_a_planted_leak_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    real_ack = WatchedQueue.ack

    async def leaking_ack(self: WatchedQueue, claim: Claim) -> None:
        await real_ack(self, claim)
        kept.append([object() for _ in range(300)])

    async def blocks(leaks: bool) -> bool:
        with monkeypatch.context() as patched:
            if leaks:
                patched.setattr(WatchedQueue, "ack", leaking_ack)
            async with Queue.open() as queue:
                load = Load(WatchedQueue(queue, Facts(tmp_path / "facts"), Meter()), rate=300, seed=1)
                load.begin()
                samples = []
                for i in range(16):
                    await asyncio.sleep(0.15)
                    samples.append((float(i), held_by_process()["blocks"] / 1000))
                await load.stop()
        series_of = next(one for one in report._SERIES if one.name == "blocks allocated by Python")
        return judge("blocks", "thousand", samples, series_of.tolerance).failed

    assert not await blocks(leaks=False)
    assert await blocks(leaks=True)


async def test_a_payload_that_was_changed_on_its_way_is_noticed(tmp_path: Path) -> None:
    async with Queue.open() as queue:
        watched = WatchedQueue(queue, Facts(tmp_path / "facts"), Meter())
        await watched.enqueue("bulk", sealed(b"whole"))
        await watched.enqueue("bulk", sealed(b"whole")[:-1])
        first, second = await watched.claim("bulk", 2)
        await watched.ack(first)
    assert (tmp_path / "facts").read_text().splitlines() == [
        f"E {first.job_id}",
        f"E {second.job_id}",
        f"C {first.job_id} {first.offset}",
        f"C {second.job_id} {second.offset}",
        f"! the payload of job {second.job_id} is not what was enqueued",
        f"A {first.job_id} {first.offset}",
    ]


async def test_a_probe_that_ended_in_its_midst_leaves_nothing_behind(tmp_path: Path) -> None:
    async with Queue.open() as queue:
        watched = WatchedQueue(queue, Facts(tmp_path / "facts"), Meter())
        load = Load(watched, rate=50, seed=1)
        load.begin()
        left = await queue.enqueue("probe", sealed(b""), delay=0.2)
        assert await load.drain(10.0)
        assert (await queue.get(left.job_id)).state == "done"
        await load.stop()


@pytest.mark.proof
async def test_a_read_that_meets_the_fence_before_its_queue_does_is_no_broken_promise(tmp_path: Path) -> None:
    disk = MemoryDisk()
    facts = tmp_path / "facts"
    async with Queue.open(store=MemoryStore(disk)) as queue:
        load = Load(WatchedQueue(queue, Facts(facts), Meter()), rate=50, seed=1)

        async def read() -> None:
            MemoryStore(disk)  # another writer
            raise Fenced("a read knows it first")

        await load._guard(read())
        assert isinstance(queue.failure, Fenced)
        assert isinstance(load.failure, Fenced)
    assert "raised" not in facts.read_text()


# ---------------------------------------------------------------------- the whole of it


def start(tmp_path: Path, *arguments: str) -> "subprocess.Popen[str]":
    (tmp_path / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=tmp_path,
        env={"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latencies mean nothing on a machine that does other things besides."""
    series = tuple(one for one in report._SERIES if one.unit != "ms")
    monkeypatch.setattr(report, "_SERIES", series)


def plan(folder: Path, **changed: Any) -> Plan:
    wanted = Plan((folder / "store").as_uri(), 10.0, 80.0, 3, 1.8, 0.4, 1000)
    return wanted._replace(**changed)


@pytest.mark.proof
async def test_a_short_run_restarts_in_every_way_and_finds_nothing(tmp_path: Path, lenient: None) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if "killed with SIGKILL" in line:  # the last of the ways; enough of it
            conductor.stopping.set()

    conductor = Conductor(plan(tmp_path, run_s=LIMIT_S), tmp_path, say)
    assert await conductor.run() == 0, "\n".join(lines)
    text = "\n".join(lines)
    for what in (
        r"closed in \S+ s, opened again in \S+ s; audit of [\d,]+ events and .* promises: nothing wrong ",
        r"abandoned, and fenced by the next queue of its process, open in ",
        r"abandoned, and fenced by process guest-1, open in ",
        r"process guest-1 killed with SIGKILL, opened again in ",
        r"drained, and closed in ",
        r"resident  enqueued \d+/s settled \d+/s  backlog \d+  enqueue p50 ",
        r"guest-1  enqueued \d+/s",
        r"promises, 0 broken",
        r"memory \(RSS\): 0 samples after the warm-up are too few to judge",
        r"blocks allocated by Python: ",
        r"passed: ",
    ):
        assert re.search(what, text), f"{what} is not in:\n{text}"
    assert conductor.restarts == 4
    kinds = conductor.auditor.oracle.events
    # What any run brings, however slow; the load's other kinds come by chance.
    wanted = ["Enqueued", "Claimed", "Acked", "WriterOpened", "WriterClosed"]
    assert [kind for kind in wanted if not kinds[kind]] == []
    assert {path.name for path in tmp_path.iterdir()} == {"store", "resident.log", "guest-1.log"}


@pytest.mark.proof
async def test_a_broken_promise_and_an_audit_that_finds_something_fail_the_run(
    tmp_path: Path, lenient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    conductor = Conductor(plan(tmp_path, run_s=3.0), tmp_path, lines.append)
    take = FactFiles.take
    monkeypatch.setattr(FactFiles, "take", lambda *given: [*take(*given), f"A {TEXT} 7"])

    def other_counts(self: object, transition: object) -> dict[bytes, bytes]:
        return {b"mail": b"7"}

    monkeypatch.setattr(Counts, "apply", other_counts)
    assert await conductor.run() == 1
    failed = [line for line in lines if line.startswith("FAILED: ")]
    assert f"FAILED: job {TEXT} was acked, but the log has no such job" in failed
    assert any("the audit found projection soak-counts" in line for line in failed)
    assert "passed" not in "".join(lines)


@pytest.mark.proof
async def test_a_process_that_ends_by_itself_and_a_store_that_grows_too_large_fail_the_run(
    tmp_path: Path, lenient: None
) -> None:
    lines: list[str] = []
    (tmp_path / "store").write_text("a file stands where the store should be")
    assert await Conductor(plan(tmp_path), tmp_path, lines.append).run() == 1
    assert any(line.startswith("FAILED: process resident: open: StoreUnavailable: ") for line in lines), lines
    (tmp_path / "store").unlink()
    assert await Conductor(plan(tmp_path, max_store_mib=0, restart_every_s=1.0), tmp_path, lines.append).run() == 1
    assert "FAILED: the store has more than 0 MiB" in lines


@pytest.mark.proof
def test_ctrl_c_ends_it_early_with_its_summary_and_removes_what_it_made(tmp_path: Path) -> None:
    running = start(tmp_path, "--minutes", "5", "--report-every", "0.3", "--rate", "50")
    assert running.stdout is not None
    try:
        first = running.stdout.readline()
        assert "resident  enqueued" in first
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=LIMIT_S)
    finally:
        running.kill()
    assert (running.returncode, errors) == (0, ""), output
    assert "drained, and closed" in output
    assert output.rstrip().splitlines()[-1].startswith("passed: ")
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--minutes", "1", "--url", "memory:///"), "memory"),
        pytest.param(("--minutes", "1", "--url", "ftp://x"), "unknown scheme", marks=pytest.mark.proof),
        pytest.param((), "--minutes", marks=pytest.mark.proof),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    running = start(tmp_path, *arguments)
    output, errors = running.communicate(timeout=LIMIT_S)
    assert (running.returncode, output) == (2, "")
    assert message in errors
    assert list((tmp_path / "tmp").iterdir()) == []
