"""The command that shows and changes schedules."""

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from ledgerq.worker.queue import Queue
from ledgerq.worker.tasks.registry import Tasks
from tests.support.cli_rig import Cli
from tests.support.operators import WHO

app = Tasks("shop")


@app.cron("30 2 * * *", zone="Europe/Berlin", jitter=60)
@app.task(queue="reports")
def nightly() -> None: ...


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with one schedule in code, and one that an operator set."""
    location = str(tmp_path / "store")

    async def fill() -> None:
        async with Queue.open(location, tasks=app) as queue:
            await queue.schedules.set("own", timedelta(hours=1000), nightly, **WHO)

    asyncio.run(fill())
    return location


def test_schedules_are_listed(cli: Cli, url: str) -> None:
    out = cli.ok("schedules", url).out
    assert "2 schedules" in out
    assert "30 2 * * *" in out
    assert "tasks shop" in out
    first, second = cli.ok("schedules", url, "--json").lines
    assert (first["schedule"], first["zone"], first["jitter_ms"], first["tasks"]) == (
        *("nightly", "Europe/Berlin", 60_000, "shop"),
    )
    assert (second["schedule"], second["when"], second["tasks"], second["paused"]) == (
        *("own", "every 41 days, 16:00:00", None, False),
    )


def test_a_schedule_is_paused_resumed_run_and_removed(cli: Cli, url: str) -> None:
    cli.ok("schedules", url, "--pause", "own", "--reason", "quiet")
    paused = cli.ok("schedules", url, "--json").lines[1]
    assert (paused["paused"], paused["next"]) == (True, None)
    assert "paused" in cli.ok("schedules", url).out
    cli.ok("schedules", url, "--resume", "own", "--reason", "loud")
    job_id = cli.ok("schedules", url, "--run", "own", "--reason", "now", "--json").json["job_id"]
    assert cli.ok("show", url, job_id, "--json").json["task"] == "nightly"
    assert cli.ok("schedules", url, "--json").lines[1]["last_job_id"] == job_id
    cli.ok("schedules", url, "--remove", "own", "--reason", "gone")
    assert "1 schedule" in cli.ok("schedules", url).out
    log = cli.ok("log", url).out
    for word in ("schedule-set", "schedule-paused", "schedule-resumed", "ticked", "schedule-removed"):
        assert word in log
    assert len(cli.ok("log", url, "--json").lines) == len(log.splitlines())
    cli.ok("audit", url, "--deep")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--pause", "none", "--reason", "x"), 1),
        (("--remove", "nightly", "--reason", "x"), 1),
        (("--pause", "own"), 2),
        (("--pause", "own", "--resume", "own", "--reason", "x"), 2),
    ],
)
def test_what_can_not_be_done_is_refused(cli: Cli, url: str, arguments: tuple[str, ...], code: int) -> None:
    assert cli("schedules", url, *arguments).code == code
