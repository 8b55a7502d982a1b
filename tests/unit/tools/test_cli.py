"""The command line: reading, JSON, exit codes, errors on one line, and that reading disturbs no writer."""

import asyncio
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from ledgerq.eventlog import errors
from ledgerq.eventlog.log import LogReader
from ledgerq.tools.cli.app import exit_code, run
from ledgerq.tools.console import output
from ledgerq.tools.console.arguments import parse_time
from tests.support.cli_rig import BASE_MS, Cli, Ledger, live_queue, make_ledger

COMMANDS = (
    *(
        "demo",
        "stats",
        "jobs",
        "enqueue",
        "show",
        "worker",
        "history",
        "log",
        "diff",
        "audit",
        "requeue",
        "cancel",
        "pause",
    ),
    *("resume", "exporter", "doctor", "bench", "rebuild-projections", "completion"),
)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return asyncio.run(make_ledger(tmp_path_factory.mktemp("ledger") / "store"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


# The output of reading commands


def test_stats(cli: Cli, ledger: Ledger) -> None:
    answer = cli.ok("stats", ledger.url, "--json").json
    mail, other = answer["queues"]
    assert answer["location"] == ledger.url
    assert answer["as_of"] == {"offset": 11, "time": "2023-11-14T22:13:22.000Z", "time_ms": BASE_MS + 2000}
    assert (mail["queue"], mail["paused"]) == ("mail", False)
    assert mail["now"] == {"scheduled": 1, "pending": 1, "claimed": 0, "done": 1, "dead": 1, "cancelled": 0}
    assert (mail["totals"]["enqueued"], mail["totals"]["acked"], mail["totals"]["swept"]) == (4, 1, 0)
    assert (other["queue"], other["paused"]) == ("other", True)


def test_stats_as_text(cli: Cli, ledger: Ledger) -> None:
    head, mail, other, _, summary = cli.ok("stats", ledger.url).out.splitlines()
    assert head.split()[:3] == ["queue", "scheduled", "pending"]
    assert mail.split() == ["mail", "1", "1", "0", "1", "1", "0", "4", "1", "1", "0"]
    assert other.startswith("other (paused)")
    assert summary.startswith("2 queues after 11 events (last event at 20")


@pytest.mark.parametrize(
    ("as_of", "offset", "pending", "claimed"),
    [
        ("0", 0, None, None),
        ("2", 2, 1, 0),
        ("4", 4, 1, 1),
        ("11", 11, 1, 0),
        ("2023-11-14T22:13:20Z", 3, 2, 0),
        ("2023-11-14T22:13:19.999Z", 0, None, None),
        ("2024-01-01", 11, 1, 0),
    ],
)
def test_stats_as_of(
    cli: Cli, ledger: Ledger, as_of: str, offset: int, pending: int | None, claimed: int | None
) -> None:
    answer = cli.ok("stats", ledger.url, "--json", "--as-of", as_of).json
    assert answer["as_of"]["offset"] == offset
    counts = [(row["now"]["pending"], row["now"]["claimed"]) for row in answer["queues"] if row["queue"] == "mail"]
    assert counts == ([] if pending is None else [(pending, claimed)])


def test_jobs(cli: Cli, ledger: Ledger) -> None:
    rows = cli.ok("jobs", ledger.url, "mail", "--json").lines
    assert {row["job_id"]: row["state"] for row in rows} == {
        ledger.done: "done",
        ledger.dead: "dead",
        ledger.pending: "pending",
        ledger.scheduled: "scheduled",
    }
    (dead,) = cli.ok("jobs", ledger.url, "mail", "--state", "dead", "--json").lines
    assert (dead["attempt"], dead["max_attempts"], dead["error"]) == (1, 3, "Traceback:\n  \x1b[31mboom")
    assert dead["sweep_at_ms"] == BASE_MS + 1000 + 7 * 24 * 3600 * 1000


def test_jobs_as_text_cannot_steer_the_terminal(cli: Cli, ledger: Ledger) -> None:
    head, row, count = cli.ok("jobs", ledger.url, "mail", "--state", "dead").out.splitlines()
    assert head.split() == ["job", "queue", "state", "priority", "attempts", "enqueued", "due", "error"]
    assert row.split()[:5] == [ledger.dead, "mail", "dead", "1000", "1/3"]
    assert row.endswith("  Traceback: \\x1b[31mboom")
    assert count == "1 job"
    assert cli.ok("jobs", ledger.url, "other").out == "0 jobs\n"


def test_jobs_by_pages(cli: Cli, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ledgerq.tools.cli.read._PAGE_JOBS", 2)
    everything = [row["job_id"] for row in cli.ok("jobs", ledger.url, "mail", "--json").lines]
    first = cli.ok("jobs", ledger.url, "mail", "--json", "--limit", 3)
    after = first.message.rpartition("--after ")[2]
    rest = cli.ok("jobs", ledger.url, "mail", "--json", "--after", after)
    assert [row["job_id"] for row in first.lines + rest.lines] == everything
    assert rest.err == ""


def test_show(cli: Cli, ledger: Ledger) -> None:
    done = cli.ok("show", ledger.url, ledger.done, "--json").json
    assert (done["state"], done["headers"], done["payload"]) == ("done", {"kind": "letter"}, "text")
    assert (done["enqueued"], done["enqueued_ms"]) == ("2023-11-14T22:13:20.000Z", BASE_MS)
    assert cli.ok("show", ledger.url, ledger.dead, "--json").json["payload"] == {"base64": "/wA="}
    scheduled = cli.ok("show", ledger.url, ledger.scheduled, "--json").json
    assert (scheduled["unique_key"], scheduled["unique_held"], scheduled["due_ms"]) == ("key", True, BASE_MS + 62_000)


def test_show_as_text(cli: Cli, ledger: Ledger) -> None:
    text = cli.ok("show", ledger.url, ledger.dead).out
    assert re.search(r"^error +Traceback:\n +\\x1b\[31mboom$", text, re.MULTILINE)
    assert re.search(r"^payload +base64 /wA=$", text, re.MULTILINE)
    assert re.search(r"^header kind +letter$", cli.ok("show", ledger.url, ledger.done).out, re.MULTILINE)


def test_sizes_say_of_what_they_are(cli: Cli, ledger: Ledger) -> None:
    """The log and a job's row know the size of the payload record, in which salt and headers stand, too."""
    record_bytes = 1 + 18 + len(b"\x81\xa4kind\xa6letter") + 2 + len(b"text")
    done = cli.ok("show", ledger.url, ledger.done, "--json").json
    assert (done["payload_bytes"], done["payload_record_bytes"]) == (len(b"text"), record_bytes)
    assert re.search(r"^bytes +4$", cli.ok("show", ledger.url, ledger.done).out, re.MULTILINE)
    (row,) = cli.ok("jobs", ledger.url, "mail", "--state", "done", "--json").lines
    enqueued = cli.ok("history", ledger.url, ledger.done, "--json").lines[0]
    for found in (row, enqueued):
        assert "payload_bytes" not in found
        assert found["payload_record_bytes"] == record_bytes
    assert f"payload record of {record_bytes} bytes" in cli.ok("history", ledger.url, ledger.done).out


def test_show_as_of(cli: Cli, ledger: Ledger) -> None:
    then = cli.ok("show", ledger.url, ledger.done, "--as-of", "4", "--json").json
    assert (then["state"], then["worker"], then["lease_ms"], then["payload"]) == ("claimed", "w1", 30_000, "text")
    assert "no job" in cli.fails(1, "show", ledger.url, ledger.pending, "--as-of", "4")


def test_history(cli: Cli, ledger: Ledger) -> None:
    rows = cli.ok("history", ledger.url, ledger.dead, "--json").lines
    assert [row["event"] for row in rows] == ["enqueued", "claimed", "nacked"]
    assert rows[2]["to"] == "dead"
    assert rows[0]["payload_digest"] == cli.ok("show", ledger.url, ledger.dead, "--json").json["payload_digest"]
    text = cli.ok("history", ledger.url, ledger.dead).out.splitlines()
    assert [line.split()[:1] + line.split()[2:3] for line in text[1:]] == [
        ["2", "enqueued"],
        ["5", "claimed"],
        ["6", "nacked"],
    ]


def test_log(cli: Cli, ledger: Ledger) -> None:
    rows = cli.ok("log", ledger.url, "--json").lines
    assert [row["offset"] for row in rows] == list(range(11))
    assert [row["event"] for row in rows] == [
        *("writer-opened", "enqueued", "enqueued", "claimed", "acked", "claimed", "nacked", "enqueued", "enqueued"),
        *("queue-paused", "writer-closed"),
    ]
    assert rows[3]["job_id"] == ledger.done
    assert (rows[9]["queue"], rows[9]["actor"], rows[9]["reason"]) == ("other", "ann", "a holiday")
    assert cli.ok("log", ledger.url, "--from", 9, "--json").lines == rows[9:]
    assert cli.ok("log", ledger.url, "--from", 11).out == ""
    assert "11 events" in cli.fails(2, "log", ledger.url, "--from", 12)


def test_log_as_text(cli: Cli, ledger: Ledger) -> None:
    lines = cli.ok("log", ledger.url).out.splitlines()
    assert len(lines) == 11
    assert lines[3].split()[0] == "3"
    assert lines[3].split()[2:] == [ledger.done, "claimed", "attempt", "1,", "lease", "30", "s", "by", "w1"]
    assert lines[6].endswith("now dead: Traceback: \\x1b[31mboom")
    assert lines[9].endswith("queue other by ann: a holiday")


# Errors


def test_each_error_has_its_exit_code() -> None:
    made = [
        errors.LogCorrupt(3, "what"),
        errors.LogRolledBack(3, 2, "what"),
        errors.ClockWentBack(1, 2),
        *(error("x") for error in (errors.JobNotFound, errors.InvalidState, errors.InvalidQueueName, errors.Fenced)),
        *(error("x") for error in (errors.StoreUnavailable, errors.StoreNotFound, errors.FormatTooNew)),
        *(error("x") for error in (errors.NotRebuilt, errors.PayloadTooLarge)),
        ZeroDivisionError(),
    ]
    assert [exit_code(error) for error in made] == [1, 1, 3, 1, 1, 2, 3, 3, 3, 3, 3, 2, 70]


@pytest.mark.parametrize(
    ("code", "argv", "says"),
    [
        (2, ["nonsense"], "No such command 'nonsense'"),
        (2, ["statz", "x"], "Did you mean"),
        (2, ["stats"], "ledgerq: Missing argument 'URL'. (see ledgerq stats --help)"),
        (2, ["stats", "x", "--nonsense"], "--nonsense"),
        (2, ["jobs", "STORE", "mail", "--limit", "0"], "--limit"),
        (2, ["jobs", "STORE", "mail", "--limit", "many"], "--limit"),
        (2, ["jobs", "STORE", "mail", "--state", "asleep"], "asleep"),
        (2, ["jobs", "STORE", "mail", "--after", "zz"], "after"),
        (2, ["jobs", "STORE", ""], "queue name"),
        (2, ["show", "STORE", "nonsense"], "is not a job id"),
        (1, ["show", "STORE", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "no job"),
        (1, ["history", "STORE", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "no event"),
        (2, ["stats", "STORE", "--as-of", "12"], "offset 12 is not in the log"),
        (2, ["stats", "STORE", "--as-of", "yesterday"], "neither an offset"),
        (2, ["stats", "memory:///"], "ends with its process"),
        (2, ["stats", "ftp://x/y"], "unknown scheme"),
        (3, ["stats", "EMPTY"], "there is no store"),
        (3, ["jobs", "EMPTY/deeper", "q"], "there is no store"),
        (3, ["audit", "EMPTY"], "there is no store"),
        (2, ["cancel", "STORE", "01ARZ3NDEKTSV4RRFFQ69G5FAV"], "--reason"),
    ],
)
def test_an_error_is_one_line_with_an_exit_code(
    cli: Cli, ledger: Ledger, tmp_path: Path, code: int, argv: list[str], says: str
) -> None:
    places = {"STORE": ledger.url, "EMPTY": str(tmp_path)}
    line = cli.fails(code, *(re.sub("^(STORE|EMPTY)", lambda found: places[found[0]], text) for text in argv))
    assert line.startswith("ledgerq: ")
    assert says in line
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_one_line_too(cli: Cli, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(self: LogReader) -> None:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(LogReader, "head", broken)
    monkeypatch.delenv("LEDGERQ_DEBUG", raising=False)
    line = cli.fails(70, "stats", ledger.url)
    assert line == "ledgerq: internal error: ZeroDivisionError: by zero (set LEDGERQ_DEBUG=1 for the traceback)"
    monkeypatch.setenv("LEDGERQ_DEBUG", "1")
    assert "Traceback" in cli("stats", ledger.url).err


def test_an_interrupt_is_quiet(cli: Cli, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(self: LogReader) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LogReader, "head", interrupted)
    ran = cli("stats", ledger.url)
    assert (ran.code, ran.out, ran.err.strip()) == (130, "", "")


def test_help_and_version(cli: Cli) -> None:
    text = cli.ok("--help").out
    assert [name for name in COMMANDS if not re.search(rf"^ +{name} ", text, re.MULTILINE)] == []
    assert "..." not in text.partition("Commands:")[2], "a summary is cut off"
    assert re.fullmatch(r"ledgerq \d\S*\n", cli.ok("--version").out)
    ran = cli()
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: ledgerq" in ran.err
    for name in COMMANDS:
        if name not in ("bench", "demo"):
            assert f"Usage: ledgerq {name}" in cli.ok(name, "--help").out


def test_demo_is_given_its_folder(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Path | None] = []

    async def run_demo(folder: Path | None, console: object, *, keep: bool) -> int:
        given.append(folder)
        return 1

    monkeypatch.setitem(sys.modules, "ledgerq.tools.demo.demo", types.SimpleNamespace(run_demo=run_demo))
    assert [cli("demo").code, cli("demo", tmp_path).code] == [1, 1]
    assert given == [None, tmp_path]


def test_bench_has_its_options_and_its_errors_on_one_line(cli: Cli) -> None:
    assert "--quick" in cli.ok("bench", "--help").out
    assert cli.fails(2, "bench", "--nonsense").startswith("ledgerq: No such option: --nonsense")
    assert "is none of" in cli.fails(2, "bench", "--only", "nonsense")


# Reading disturbs no writer


def test_reading_does_not_fence_a_writer_in_this_process(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    with live_queue(url) as (runner, queue):
        job = runner.run(queue.enqueue("mail", b"one"))
        for argv in (["stats"], ["jobs"], ["show"], ["history"], ["log"], ["audit", "--deep"], ["doctor"]):
            more = {"jobs": ["mail"], "show": [job.job_id], "history": [job.job_id]}.get(argv[0], [])
            cli.ok(argv[0], url, *more, *argv[1:])
        cli.ok("rebuild-projections", url, "--check")
        assert runner.run(queue.enqueue("mail", b"two")).created
        assert cli.ok("stats", url, "--json").json["queues"][0]["now"]["pending"] == 2


WRITER = """
import asyncio, sys
from ledgerq.worker.queue import Queue

async def main():
    async with Queue.open(sys.argv[1]) as queue:
        print("open", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            await queue.enqueue("mail", line.strip().encode())
            print("enqueued", flush=True)

asyncio.run(main())
"""


@pytest.mark.proof
def test_reading_does_not_fence_a_writer_in_another_process(cli: Cli, tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    command, pipe = [sys.executable, "-c", WRITER, url], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with subprocess.Popen(
            [sys.executable, "-m", "ledgerq.tools.cli", "log", url, "--follow", "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as follower:
            assert follower.stdout is not None
            assert follower.stderr is not None
            assert json.loads(follower.stdout.readline())["event"] == "writer-opened"
            for number in range(2):
                cli.ok("stats", url)
                cli.ok("audit", url)
                writer.stdin.write(f"{number}\n")
                writer.stdin.flush()
                assert writer.stdout.readline() == "enqueued\n"
                assert json.loads(follower.stdout.readline())["event"] == "enqueued"
            follower.send_signal(2)
            assert (follower.wait(60), follower.stderr.read()) == (130, "")
        refused = cli.fails(5, "pause", url, "mail", "--reason", "x")
        assert f"is in use: process {writer.pid} on host" in refused
        assert "--take-over" in refused
        writer.stdin.close()
        assert writer.wait(60) == 0


# Programs


@pytest.mark.proof
def test_a_closed_pipe_is_no_error(ledger: Ledger, tmp_path: Path) -> None:
    big = str(tmp_path / "store")
    with live_queue(big) as (runner, queue):
        runner.run(queue.enqueue_many("mail", [b"x"] * 3000))
    program = f"{sys.executable} -m ledgerq.tools.cli"
    for command in (f"log {big} --json", f"log {ledger.url}"):
        text = f"{program} {command} | head -n 1"
        done = subprocess.run(["bash", "-o", "pipefail", "-c", text], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1), command


def test_a_terminal_gets_a_table(ledger: Ledger) -> None:
    ours, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    command = [sys.executable, "-m", "ledgerq.tools.cli", "jobs", ledger.url, "mail"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as program:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # that is how a terminal tells its end
        assert program.wait(60) == 0
    os.close(ours)
    text = shown.decode()
    assert "─" in text
    assert ledger.done in text
    assert "\x1b[31m" not in text


def test_a_command_line_is_parsed_without_heavy_modules() -> None:
    code = (
        "import sys, ledgerq\n"
        "before = set(sys.modules)\n"
        "from ledgerq.tools.cli.app import run\n"
        "assert run(['--help']) == 0\n"
        "heavy = {'slatedb', 'obstore', 'pydantic', 'rich.progress', 'aiostream', 'ledgerq.worker.queue'}\n"
        "print(sorted((set(sys.modules) - before) & heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# Output


def test_times() -> None:
    assert output.utc_time(BASE_MS + 5) == "2023-11-14T22:13:20.005Z"
    assert output.utc_time(10**18) == "1000000000000000000 ms"
    assert output.local_time(BASE_MS).startswith("2023-11-1")


@pytest.mark.parametrize(("zone", "hours"), [("UTC", 0), ("America/New_York", 5), ("Asia/Tokyo", -9)])
def test_the_last_times_that_can_be_written_are_taken(zone: str, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        days_ms = [parse_time(f"9999-12-{day}T23:59:59") for day in (29, 30, 31)]
        assert parse_time("9999-12-31T23:59:59Z") == 253_402_300_799_000
        assert parse_time("2026-07-01T12:00:00+02:00") == parse_time("2026-07-01T10:00:00Z")
    finally:
        monkeypatch.undo()
        time.tzset()
    last_ms = 253_402_300_799_000 + hours * 3_600_000
    assert days_ms == [last_ms - 2 * 86_400_000, last_ms - 86_400_000, last_ms]


def test_texts() -> None:
    assert output.printable("a\nb\x1b[0m\u202e") == "a\\nb\\x1b[0m\\u202e"
    assert output.shorten("x" * 100, 10) == "...xxxxxxx"
    assert output.json_bytes("ü".encode()) == "ü"
    assert output.json_bytes(b"\xff") == {"base64": "/w=="}


def test_progress_off_a_terminal_is_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with output.progress("auditing") as report:
        report(1, 200)
        now_s = 11.0
        report(50, 200)
        report(60, 200)
    assert capsys.readouterr().err == "ledgerq: auditing: 50 of 200 events (25 %)\n"


def test_progress_at_a_terminal_has_a_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with output.progress("auditing") as report:
        for done in (0, 50, 100):
            report(done, 200)
    shown = terminal.getvalue()
    assert "100/200" in shown
    assert "events/s" in shown
    assert ":" in shown.rpartition("events/s")[2], "the time left"


def test_nothing_is_shown_under_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with output.progress("auditing", quiet=True) as report:
        now_s = 11.0
        report(50, 200)
    assert capsys.readouterr() == ("", "")


def test_json_on_a_stream_that_is_not_unicode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="latin-1") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        output.Output(as_json=True).json({"text": "≠"})
    assert json.loads((tmp_path / "out").read_text("ascii")) == {"text": "≠"}


def test_run_needs_no_console_script() -> None:
    assert run(["--version"]) == 0
