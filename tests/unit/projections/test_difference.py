"""The difference between two offsets, against two folds of the same log; and the command that shows it."""

import asyncio
from pathlib import Path

import pytest

from ledgerq import InvalidArgument
from ledgerq.eventlog.log import LogReader
from ledgerq.projections.difference import difference
from ledgerq.projections.replay import fold_to
from ledgerq.tools.console.opening import reading
from tests.support.cli_rig import Cli, Ledger, make_ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return asyncio.run(make_ledger(tmp_path_factory.mktemp("difference") / "store"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


async def compare(log: LogReader, start: int, stop: int) -> None:
    """Check that both ends of a difference are the folds as of its two offsets."""
    found = await difference(log, start, stop)
    before, after = await fold_to(log, offset=start), await fold_to(log, offset=stop)
    states = {
        job.job_id: (old.state if (old := before.jobs.get(job.id)) else None, job.state)
        for job in after.jobs.values()
        if (old := before.jobs.get(job.id)) is None or (old.state, old.attempt) != (job.state, job.attempt)
    }
    assert {job.job_id: (job.before, job.after) for job in found.jobs} == states
    changed = {
        queue: counters.view(queue)
        for queue, counters in after.counters.items()
        if queue not in before.counters or before.counters[queue].view(queue) != counters.view(queue)
    }
    assert {change.after.queue: change.after for change in found.queues} == changed


async def test_between_any_two_offsets(ledger: Ledger) -> None:
    async with reading(ledger.url) as log:
        end = await log.end()
        for start in range(end + 1):
            for stop in range(start, end + 1):
                await compare(log, start, stop)
        for start, stop in ((0, end + 1), (end + 1, end + 1), (-1, 0)):
            with pytest.raises(InvalidArgument, match="is not in the log"):
                await difference(log, start, stop)
        with pytest.raises(InvalidArgument, match="give the earlier one first"):
            await difference(log, 3, 2)


def test_the_command(cli: Cli, ledger: Ledger) -> None:
    records = cli.ok("log", ledger.url, "--json").lines
    claimed = next(record["offset"] for record in records if record["event"] == "claimed")
    said = cli.ok("diff", ledger.url, claimed, len(records), "--json").lines
    queues, jobs = [one for one in said if "job_id" not in one], [one for one in said if "job_id" in one]
    assert queues[0]["now"] == {"scheduled": [0, 1], "pending": [2, 1], "done": [0, 1], "dead": [0, 1]}
    assert (queues[0]["totals"]["acked"], queues[1]["queue"], queues[1]["paused"]) == ([0, 1], "other", [False, True])
    assert {job["job_id"]: (job["before"], job["after"]) for job in jobs} == {
        ledger.done: ("pending", "done"),
        ledger.dead: ("pending", "dead"),
        ledger.pending: (None, "pending"),
        ledger.scheduled: (None, "scheduled"),
    }
    text = cli.ok("diff", ledger.url, claimed, len(records)).out
    assert "queue mail: scheduled 0 -> 1, pending 2 -> 1, done 0 -> 1, dead 0 -> 1" in text
    assert text.endswith(f"4 jobs and 2 queues changed in {len(records) - claimed} events\n")
    cut = cli.ok("diff", ledger.url, claimed, len(records), "--limit", 1)
    assert "3 more jobs changed" in cut.message
    assert "0 jobs and 0 queues" in cli.ok("diff", ledger.url, 2, 2).out


def test_offsets_that_are_not_there(cli: Cli, ledger: Ledger, tmp_path: Path) -> None:
    assert "is not in the log" in cli.fails(2, "diff", ledger.url, 0, 10**30)
    assert "give the earlier one first" in cli.fails(2, "diff", ledger.url, 5, 4)
    assert cli("diff", tmp_path / "none", 0, 0).code == 3
