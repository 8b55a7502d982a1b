"""Commands on a store whose writer shares it: it does what they ask for, and goes on."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ledgerq.events import Cancelled, Enqueued, QueuePaused, WriterOpened
from ledgerq.worker.queue import Queue
from ledgerq.worker.sharing.shared_queue import SharedQueue
from ledgerq.worker.tasks.registry import Tasks
from tests.support.cli_rig import Cli

LIMIT_S = 60
REASON = ("--reason", "why", "--actor", "ann")
app = Tasks("shop")


@app.cron("30 2 * * *")
@app.task(queue="reports")
def nightly() -> None: ...


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


class Live:
    """A shared queue in a thread, whose event loop goes on while commands run in this one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, queue: SharedQueue) -> None:
        self.loop = loop
        self.queue = queue

    def run(self, what: Any) -> Any:
        """Run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(LIMIT_S)


@contextmanager
def live(url: str) -> Iterator[Live]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def opened() -> SharedQueue:
        return await Queue.open(url, share=True, tasks=app)

    try:
        one = Live(loop, asyncio.run_coroutine_threadsafe(opened(), loop).result(LIMIT_S))
        try:
            yield one
        finally:
            one.run(one.queue.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_commands_have_the_writer_do_what_they_ask_for(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with live(url) as owner:
        job_id = cli.ok("enqueue", url, "mail", "hello", "--header", "a=b").out.strip()
        again = cli.ok("enqueue", url, "mail", "hello", "--unique-key", "k", "--json").json
        assert cli.ok("enqueue", url, "mail", "hello", "--unique-key", "k", "--json").json == again | {"created": False}
        assert owner.run(owner.queue.payload(job_id)).headers == {"a": "b"}
        assert "paused" in cli.ok("pause", url, "mail", *REASON).out
        assert "no queue 'male'" in cli.fails(2, "pause", url, "male", *REASON)
        cli.ok("resume", url, "mail", *REASON)
        (claim,) = owner.run(owner.queue.claim("mail"))
        owner.run(owner.queue.nack(claim, "broken", dead=True))
        assert "is pending" in cli.ok("requeue", url, job_id, *REASON).out
        (claim,) = owner.run(owner.queue.claim("mail"))
        assert "asked to stop" in cli.ok("cancel", url, job_id, *REASON).out
        owner.run(owner.queue.nack(claim, "broken"))
        events = [record.event for record in owner.run(owner.queue.records())]
    assert len([event for event in events if isinstance(event, WriterOpened)]) == 1
    assert [event.actor for event in events if isinstance(event, QueuePaused)] == ["ann"]
    assert len([event for event in events if isinstance(event, Enqueued)]) == 2


def test_changes_of_many_jobs_and_of_schedules_are_made_by_it(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with live(url) as owner:
        for number in range(3):
            owner.run(owner.queue.enqueue("mail", b"%d" % number))
        for claim in owner.run(owner.queue.claim("mail", 2)):
            owner.run(owner.queue.nack(claim, "broken", dead=True, error_type="OSError"))
        dry = cli.ok("dead", url, "mail", "--requeue", "--json").json
        assert (dry["count"], dry["offset"]) == (2, None)
        some = ("--apply", "--expect", 2, "--token", dry["token"], *REASON)
        done = cli.ok("dead", url, "mail", "--requeue", "--error-type", "OSError", *some, "--json").json
        assert (done["count"], done["skipped"], len(done["examples"])) == (2, 0, 2)
        assert "3 jobs" in cli.ok("move", url, "mail", "post", "--state", "pending", "--apply", *REASON).out
        assert "more than the 1 expected" in cli.fails(1, "cancel-all", url, "post", "--apply", "--expect", 1, *REASON)
        assert "3 jobs" in cli.ok("cancel-all", url, "post", "--apply", *REASON).out
        assert "no change" in cli.ok("cancel-all", url, "post", "--resume").err
        for what in ("--pause", "--resume"):
            cli.ok("schedules", url, what, "nightly", *REASON)
        assert "job" in cli.ok("schedules", url, "--run", "nightly", *REASON).err
        assert "is in the code" in cli.fails(1, "schedules", url, "--remove", "nightly", *REASON)
        (schedule,) = owner.run(owner.queue.schedules.list())
        assert (schedule.name, schedule.jobs, schedule.paused) == ("nightly", 1, False)
        assert owner.run(owner.queue.schedules.get("nightly")) == schedule
        events = [record.event for record in owner.run(owner.queue.records())]
    assert len([event for event in events if isinstance(event, Cancelled)]) == 3


def test_one_that_takes_over_fences_it_and_it_takes_the_store_back(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with live(url) as owner:
        epoch = owner.queue.epoch
        cli.ok("enqueue", url, "mail", "hello", "--take-over")
        job = owner.run(owner.queue.enqueue("mail", b"again"))
        assert owner.run(owner.queue.get(job.job_id)).state == "pending"
        assert owner.queue.epoch == epoch + 2
        assert owner.queue.is_writer
