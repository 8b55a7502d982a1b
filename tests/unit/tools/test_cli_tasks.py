"""Tasks from the command line: enqueued by name, run by a worker for all of them, and shown with their results."""

import sys
from pathlib import Path

import pytest

from tests.support.cli_rig import Cli

PROGRAM = """
from ledgerq import Tasks, Queue, Worker

app = Tasks()

@app.task(queue="mail")
async def send(user_id: int) -> str:
    return f"sent to {user_id}"

async def make():
    return Worker(await Queue.open("jobs"), tasks=app)
"""


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    (tmp_path / "cli_tasks.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_tasks", raising=False)
    return Cli(capsys, monkeypatch)


def test_a_task_is_enqueued_run_and_shown(cli: Cli) -> None:
    job_id = cli.ok("enqueue", "jobs", "mail", '{"user_id": 3}', "--task", "send").out.strip()
    cli.ok("worker", "cli_tasks:app", "jobs", "--until-empty", "--concurrency", "5")
    shown = cli.ok("show", "jobs", job_id, "--json").json
    assert (shown["task"], shown["state"], shown["result"]) == ("send", "done", '"sent to 3"')
    assert "sent to 3" in cli.ok("show", "jobs", job_id).out
    enqueued, _, acked = cli.ok("history", "jobs", job_id, "--json").lines
    assert (enqueued["task"], acked["result_digest"]) == ("send", shown["result_digest"])
    text = cli.ok("history", "jobs", job_id).out
    assert "task send" in text
    assert "a result of " in text
    cli.ok("audit", "jobs", "--deep")


def test_a_job_without_a_task_shows_none(cli: Cli) -> None:
    job_id = cli.ok("enqueue", "jobs", "mail", "x").out.strip()
    shown = cli.ok("show", "jobs", job_id, "--json").json
    assert (shown["task"], shown["result"], shown["result_digest"], shown["error_type"]) == (None, None, None, None)
    assert "task" not in cli.ok("show", "jobs", job_id).out


def test_a_dead_job_shows_the_type_of_its_error(cli: Cli) -> None:
    job_id = cli.ok("enqueue", "jobs", "mail", '{"nobody": 3}', "--task", "send").out.strip()
    cli.ok("worker", "cli_tasks:make", "--until-empty")
    shown = cli.ok("show", "jobs", job_id, "--json").json
    assert (shown["state"], shown["error_type"]) == ("dead", "ArgumentsDontFit")


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (("cli_tasks:app",), "give the store of their jobs, too"),
        (("cli_tasks:make", "jobs"), "without a URL, --concurrency or --share"),
        (("cli_tasks:make", "--concurrency", "5"), "without a URL, --concurrency or --share"),
        (("cli_tasks:make", "--share"), "without a URL, --concurrency or --share"),
        (("cli_tasks:app", "jobs", "--share", "--metrics-port", "0"), "--share goes without --metrics-port"),
        (("cli_tasks:app", "jobs", "--concurrency", "0"), "concurrency is a whole number"),
    ],
)
def test_what_does_not_fit_together_is_refused(cli: Cli, argv: tuple[str, ...], what: str) -> None:
    assert what in cli.fails(2, "worker", *argv)


def test_a_tasks_name_is_checked_before_the_store_is_made(cli: Cli) -> None:
    assert "a task's name" in cli.fails(2, "enqueue", "jobs", "mail", "{}", "--task", "")
    assert not Path("jobs").exists()


def test_what_fails_around_the_tasks_is_the_programs_own_error(cli: Cli, tmp_path: Path) -> None:
    lifespan = '@app.lifespan\nasync def up():\n    raise ConnectionError("no database")\n    yield\n'
    (tmp_path / "cli_tasks.py").write_text(f"{PROGRAM}\n{lifespan}")
    said = cli.fails(2, "worker", "cli_tasks:app", "jobs")
    assert "the worker of cli_tasks:app failed: ConnectionError: no database" in said
    (tmp_path / "cli_none.py").write_text("from ledgerq import Tasks\n\napp = Tasks()\n")
    assert "import the modules that define them" in cli.fails(2, "worker", "cli_none:app", "jobs")
