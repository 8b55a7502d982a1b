"""The commands that look at or change many jobs, and top."""

import asyncio
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import ManualClock
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.projections.selection import Filter
from ledgerq.tools.cli.top import frame_of
from ledgerq.worker.engine import bulk_change
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import Cli, live_queue
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with 25 dead jobs, three of them by another error, and two that wait."""
    location = str(tmp_path / "store")

    async def fill() -> None:
        async with Queue.open(location) as queue:
            await queue.enqueue_many("mail", [b"x"] * 25)
            for number, claim in enumerate(await claim_all(queue, "mail")):
                await queue.nack(claim, "boom" if number else "no such host", dead=True)
            await queue.enqueue_many("mail", [b"y"] * 2)

    asyncio.run(fill())
    return location


def test_dead_jobs_are_counted_and_some_are_shown(cli: Cli, url: str) -> None:
    ran = cli.ok("dead", url, "mail")
    assert "25 jobs of queue mail match" in ran.out
    assert "the first 20 are shown" in ran.out
    assert ran.out.count("boom") == 19
    assert ran.err == ""
    assert "1 job of queue mail match" in cli.ok("dead", url, "mail", "--error", "no such").out
    assert "0 jobs" in cli.ok("dead", url, "mail", "--error-type", "OSError").out
    assert "0 jobs" in cli.ok("dead", url, "mail", "--before", "2020-01-01").out
    assert "25 jobs" in cli.ok("dead", url, "mail", "--after", "2020-01-01").out


def test_a_dry_run_changes_nothing_and_says_how_to_go_on(cli: Cli, url: str) -> None:
    before = cli.ok("stats", url, "--json").json["as_of"]
    seen = cli.ok("dead", url, "mail", "--requeue", "--json").json
    assert (seen["what"], seen["count"], seen["offset"], len(seen["examples"])) == ("requeue", 25, None, 20)
    said = cli.ok("dead", url, "mail", "--requeue").err
    assert f"nothing was changed: add --apply, and --expect 25 --token {seen['token']}" in said
    assert cli.ok("stats", url, "--json").json["as_of"] == before


def test_dead_jobs_are_requeued_and_deleted(cli: Cli, url: str) -> None:
    seen = cli.ok("dead", url, "mail", "--requeue", "--error", "boom", "--json").json
    these = ["--expect", seen["count"], "--token", seen["token"]]
    words = ["dead", url, "mail", "--error", "boom", "--requeue", "--apply", "--reason", "it is back", *these]
    assert cli.ok(*words).out == "24 jobs of queue mail requeued\n"
    done = cli.ok("dead", url, "mail", "--delete", "--apply", "--reason", "junk", "--actor", "ann", "--json").json
    assert (done["what"], done["count"], done["skipped"]) == ("delete", 1, 0)
    now = cli.ok("stats", url, "--json").json["queues"][0]["now"]
    assert (now["pending"], now["dead"]) == (26, 0)
    began = [line for line in cli.ok("log", url, "--json").lines if line["event"] == "bulk-began"]
    assert [(one["what"], one["reason"]) for one in began] == [
        ("requeue", "it is back (jobs whose error has: boom)"),
        ("delete", "junk"),
    ]
    assert "requeue jobs of queue mail, by" in cli.ok("log", url).out
    assert "24 changed, 0 not" in cli.ok("log", url).out
    assert cli.ok("audit", url, "--deep", "--json").json["clean"] is True


def test_more_jobs_than_expected_are_refused(cli: Cli, url: str) -> None:
    words = ["dead", url, "mail", "--requeue", "--apply", "--reason", "x", "--expect", 24]
    assert "25 jobs match now, more than the 24 expected" in cli.fails(1, *words)


def test_all_jobs_that_wait_are_cancelled(cli: Cli, url: str) -> None:
    assert "2 jobs of queue mail match" in cli.ok("cancel-all", url, "mail").out
    assert "0 jobs" in cli.ok("cancel-all", url, "mail", "--state", "scheduled").out
    done = cli.ok("cancel-all", url, "mail", "--apply", "--reason", "a mistake")
    assert done.out == "2 jobs of queue mail cancelled or asked to stop\n"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("dead", "mail", "--apply", "--reason", "x"), "--apply needs --requeue or --delete"),
        (("dead", "mail", "--requeue", "--apply"), "--apply needs --reason"),
        (("dead", "mail", "--requeue", "--delete"), "not both"),
        (("dead", "nail"), "there is no queue 'nail'"),
        (("dead", "mail", "--requeue", "--apply", "--reason", " "), "reason must be text"),
        (("dead", "mail", "--before", "soon"), "is not a time"),
        (("cancel-all", "mail", "--state", "dead"), "dead can't be changed so"),
        (("move", "mail", "mail"), "in queue 'mail' already"),
        (("move", "mail", "other", "--state", "done"), "done can't be changed so"),
        (("dead", "nail", "--requeue", "--apply", "--reason", "x"), "there is no queue 'nail'"),
    ],
)
def test_wrong_usage(cli: Cli, url: str, words: tuple[str, ...], what: str) -> None:
    command, *more = words
    assert what in cli.fails(2, command, url, *more)


def test_an_interrupted_change_is_finished_by_the_command(cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_change, "_PIECE_JOBS", 2)
    monkeypatch.setattr(bulk_change, "_COMMIT_JOBS", 2)

    async def begin() -> None:
        async with Queue.open(url) as queue:
            task = asyncio.create_task(queue.bulk.requeue(Filter(queue="mail"), **WHO, dry_run=False))
            while not (await queue.stats("mail")).totals["requeued"]:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(begin())
    refused = cli.fails(1, "dead", url, "mail", "--delete", "--apply", "--reason", "x")
    assert "was interrupted: finish it first" in refused
    assert cli.ok("dead", url, "mail", "--resume").out == "25 jobs of queue mail requeued\n"
    assert "nothing" not in cli.ok("dead", url, "mail", "--resume").out
    assert cli.ok("audit", url, "--json").json["clean"] is True


def test_a_live_writer_is_not_fenced(cli: Cli, url: str) -> None:
    with live_queue(url):
        assert "25 jobs" in cli.ok("dead", url, "mail").out
        assert cli("dead", url, "mail", "--requeue", "--apply", "--reason", "x").code == 5


def test_top_shows_one_frame(cli: Cli, url: str) -> None:
    out = cli.ok("top", url, "--once").out
    assert "pending  oldest" in out
    assert "mail" in out
    frame = cli.ok("top", url, "--once", "--json").json
    (mail,) = frame["queues"]
    assert (mail["queue"], mail["now"]["dead"], mail["now"]["pending"], mail["rates_s"]) == ("mail", 25, 2, None)
    assert mail["oldest_pending_s"] >= 0


async def test_rates_are_of_the_time_between_two_frames() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue_many("q", [b""] * 4)
        clock = ManualClock(rig.clock.now_ms() + 30_000)
        log = LogReader(MemoryReader(rig.disk), clock=clock)
        first = await frame_of(log, None)
        assert (first.queues[0].oldest_s, first.queues[0].enqueued_s) == (30.0, None)
        await rig.queue.enqueue_many("q", [b""] * 6)
        claims = await rig.queue.claim("q", limit=4)
        await rig.queue.ack_many(claims[:2])
        await rig.queue.nack(claims[2], "boom")
        await rig.queue.release(claims[3])
        clock.advance(seconds=2)
        (line,) = (await frame_of(LogReader(MemoryReader(rig.disk), clock=clock), first)).queues
        assert (line.enqueued_s, line.acked_s, line.failed_s) == (3.0, 1.0, 0.5)


def test_dead_jobs_are_moved_to_another_queue(cli: Cli, url: str) -> None:
    assert "1 job of queue mail match" in cli.ok("move", url, "mail", "other", "--error", "no such").out
    done = cli.ok("move", url, "mail", "other", "--apply", "--reason", "to be looked at", "--json").json
    assert (done["what"], done["count"], done["examples"][0]["queue"]) == ("move", 25, "mail")
    stats = {one["queue"]: one for one in cli.ok("stats", url, "--json").json["queues"]}
    assert (stats["mail"]["now"]["dead"], stats["other"]["now"]["pending"]) == (0, 25)
    job = done["examples"][0]["job_id"]
    shown = cli.ok("show", url, job, "--json").json
    assert (shown["queue"], shown["moved_from"], shown["state"]) == ("other", "mail", "pending")
    assert "moved from mail" in " ".join(cli.ok("show", url, job).out.split())
    assert "to queue other by" in cli.ok("history", url, job).out
    assert "move jobs of queue mail to queue other" in cli.ok("log", url).out
