"""The benchmark runs and reports what it should; its speeds are not tested."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ledgerq.projections.stats import QueueStats
from ledgerq.tools.bench import measurement, results
from ledgerq.tools.bench.bench import MEASUREMENTS, app
from ledgerq.tools.bench.measurement import Bench, Measurement, Target, percentile
from ledgerq.tools.bench.metrics_cost import without_measures
from ledgerq.worker.queue import Queue

EXPECTED = {
    "enqueue": ["enqueue", "enqueue-no-fsync", "enqueue-40"],
    "claim": ["claim", "claim-no-fsync", "claim-40"],
    "worker": ["worker", "worker-no-fsync"],
    "bulk": ["bulk-enqueue", "bulk-claim"],
    "latency": ["latency-handler-p50", "latency-handler-p99", "latency-acked-p50", "latency-acked-p99"],
    "drain": ["memory", "memory-flatness", "drain", "drain-flatness"],
    "replay": ["replay", "fold", "verify"],
    "audit": [f"{mode}{part}" for mode in ("audit", "rebuild") for part in ("-one", "-one-memory", "", "-memory")],
    "open": ["open", "open-beyond", "open-memory"],
    "s3": ["s3-enqueue", "s3-claim", "s3-worker"],
    "s3-requests": [
        f"s3-{what}"
        for rate in (1, 100, 1000)
        for what in (f"puts-{rate}", f"latency-{rate}-p50", f"latency-{rate}-p99")
    ],
    "metrics": ["metrics-enqueue", "metrics-claim", "metrics-worker"],
}
WITH_BASELINE = [
    *(name for part in ("enqueue", "claim", "worker", "bulk", "latency", "s3") for name in EXPECTED[part]),
    *("open", "open-memory"),
]
WITH_TARGET = [
    *("enqueue", "enqueue-no-fsync", "claim", "claim-no-fsync", *EXPECTED["worker"]),
    *("latency-acked-p50", "latency-acked-p99", "memory", "memory-flatness", "drain-flatness"),
    *("replay", "fold", *(name for name in EXPECTED["audit"] if name not in ("audit-one", "rebuild-one"))),
    *("open-beyond", "open-memory", *EXPECTED["s3"], *EXPECTED["metrics"]),
]


def run(*arguments: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ledgerq.tools.bench", *arguments],
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.proof
def test_quick_json_names_every_measurement_with_its_runs_and_leaves_nothing_behind(tmp_path: Path) -> None:
    output, messages = run("--quick", "--json", "--dir", str(tmp_path))
    document = json.loads(output)
    found = {one["name"]: one for one in document["measurements"]}

    assert list(found) == [name for names in EXPECTED.values() for name in names]
    assert [name for name, one in found.items() if one["ratios"]] == [n for n in found if n in WITH_BASELINE]
    assert [name for name, one in found.items() if one["target"]] == [n for n in found if n in WITH_TARGET]
    for one in found.values():
        check_measurement(one, runs=1, may_be_negative=one["unit"] == "%")

    assert set(document["machine"]) == {"cpu", "cores", "kernel", "python", "slatedb", "ledgerq", "file_system"}
    parameters = document["parameters"]
    assert parameters["runs"] == 1
    assert parameters["fsync"] is True
    assert parameters["baseline_fsync"] is False
    tried = parameters["baseline_jobs_per_s_by_flush_interval_ms"]
    assert max(tried, key=tried.__getitem__) == str(parameters["baseline_flush_interval_ms"])
    for name in ("memory-flatness", "drain-flatness"):
        assert [len(run) for run in found[name]["details"]["jobs_per_s_by_tenth"]] == [10]
    assert all(0 < found[name]["details"]["puts_per_job"][0] < 1 for name in EXPECTED["s3"])
    assert found["s3-puts-100"]["details"]["requests"]["PUT wal"] > 0
    assert "enqueue:" in messages
    assert list(tmp_path.iterdir()) == []


def check_measurement(one: dict[str, Any], *, runs: int, may_be_negative: bool) -> None:
    assert len(one["runs"]) == runs
    assert may_be_negative or all(number > 0 for number in one["runs"])
    assert min(one["runs"]) <= one["median"] <= max(one["runs"])
    assert len(one["ratios"]) == len(one["baseline_runs"])
    assert (one["ratio_median"] is None) == (one["baseline_is"] is None)
    if one["ratios"]:
        assert len(one["ratios"]) == runs
        better = one["runs"][0] / one["baseline_runs"][0]
        assert one["ratios"][0] == pytest.approx(better if one["better"] == "higher" else 1 / better)
    if one["target"]:
        assert isinstance(one["target"]["reached"], bool)


@pytest.mark.proof
def test_only_some_and_several_runs_as_a_table(tmp_path: Path) -> None:
    arguments = ["--quick", "--only", "enqueue", "--runs", "2", "--no-fsync", "--commit-interval-ms", "1"]
    done = CliRunner().invoke(app, [*arguments, "--dir", str(tmp_path)])

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert "medians of 2 runs" in lines[1]
    assert "fsync off" in lines[1]
    assert lines[2].split() == ["measured", "ledgerq", "baseline", "ratio", "target"]
    assert [line[: len("enqueue, one by one")] for line in lines[3:]] == ["enqueue, one by one"] * 2
    assert "at least 10x: " in lines[3]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "speed"], "'speed' is none of"),
        (["--url", "memory:///"], "gone between the steps"),
        (["--runs", "0"], "Invalid value for '--runs'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(arguments: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["--quick", *arguments])
    assert done.exit_code == 2
    assert words in " ".join(done.output.replace("│", " ").split())


def test_every_measurement_is_expected_here() -> None:
    assert list(MEASUREMENTS) == list(EXPECTED)


def test_ratios_say_how_many_times_better_run_by_run() -> None:
    rate = Measurement("a", "", "jobs/s", runs=[100.0, 300.0, 200.0], baseline=[10.0, 10.0, 10.0])
    assert rate.ratios == [10, 30, 20]
    assert (rate.median, rate.ratio) == (200, 20)
    time = Measurement("b", "", "ms", "lower", runs=[2.0], baseline=[8.0])
    assert time.ratios == [4]
    assert Measurement("c", "", "s", runs=[1.0]).ratio is None


def test_a_target_is_of_the_median_or_of_the_ratio() -> None:
    ratio = Measurement("a", "", "jobs/s", target=Target("ratio", at_least=12), runs=[120.0], baseline=[10.0])
    assert ratio.reached is True
    ratio.baseline = [11.0]
    assert ratio.reached is False
    assert Measurement("b", "", "s", target=Target("value", at_most=2), runs=[2.0]).reached is True
    assert Measurement("c", "", "s", target=Target("value", at_most=2), runs=[2.1]).reached is False
    assert Measurement("d", "", "s", runs=[2.1]).reached is None
    assert Target("ratio", at_least=12).text == "at least 12x"
    assert Target("value", at_least=500_000).text == "at least 500,000"


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, percent) for percent in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([7.0], 50) == 7


def test_the_full_sizes_are_those_that_the_targets_speak_of() -> None:
    full = measurement.FULL
    assert (full.callers, full.jobs_per_call, full.latency_jobs_per_s) == (100, 1000, 100)
    assert (full.open_jobs, full.drain_jobs) == (1_000_000, 100_000)
    assert (full.memory_jobs, full.many_callers, full.s3_delay_ms) == (200_000, 400, 20)
    assert full.log_jobs * 3 >= 300_000


def test_the_file_system_is_named(tmp_path: Path) -> None:
    assert results.file_system_of(tmp_path)
    if Path("/proc/self/mounts").exists():
        assert results.file_system_of(Path("/proc")) == "proc"


def test_no_further_run_begins_when_a_measurement_has_taken_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(measurement.MEMORY, measurement.QUICK, 3, fsync=False, commit_interval_ms=None, say=lambda text: None)
    assert list(bench.turns()) == [0, 1, 2]
    times_s = iter([0.0, 80.0, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(times_s))
    assert list(bench.turns()) == [0, 1]


def test_the_counters_are_the_same_without_the_measures() -> None:
    with without_measures():
        plain = asyncio.run(_counted())
    whole = asyncio.run(_counted())
    assert plain == whole
    assert plain.totals["acked"] == plain.done == 20


async def _counted() -> QueueStats:
    async with Queue.open(measurement.MEMORY) as queue:
        await queue.enqueue_many("q", [b"x"] * 30)
        for number, claim in enumerate(await queue.claim("q", limit=25)):
            await (queue.ack(claim) if number % 5 else queue.nack(claim, "why", delay=60))
        return await queue.stats("q")
