"""Names, errors and reasons made to forge lines of a log or to steer a terminal: they are shown, as escapes."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.runtime.log_records import about, about_job, logger
from ledgerq.eventlog.runtime.printable import printable, printable_json
from ledgerq.worker.execution import JobContext
from ledgerq.worker.metrics.asgi import MetricsApp
from ledgerq.worker.metrics.endpoint import Metrics
from ledgerq.worker.outcomes import Dead
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.support.cli_rig import Cli
from tests.support.operators import Who
from tests.support.rig import Rig
from tests.support.web import OPENMETRICS, ask_app, samples, series
from tests.tiers import sampled

# A new line that looks like one of the log, the escape and the one-byte CSI of terminals, a bell, DEL, right-to-left.
EVIL = "q\n2026-01-01 ERROR all is lost\r\x1b[2J\x9b31m\x07\x7f\u202egnp\u2066\u2028\U000e0001end"
SHOWN = r"q\n2026-01-01 ERROR all is lost\r\x1b[2J\x9b31m\x07\x7f\u202egnp\u2066\u2028\U000e0001end"
E = TypeVar("E", bound=BaseException)
WHO: Who = {"actor": f"actor{EVIL}", "reason": f"reason{EVIL}"}


def is_fit(text: str) -> bool:
    """Whether nothing in it steers a terminal, but for the ends of its lines."""
    return text.replace("\n", "").isprintable()


# The signs themselves


def test_each_sign_that_is_none_is_escaped() -> None:
    assert printable(EVIL) == SHOWN
    for code in [*range(32), *range(127, 160), 0x200B, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xFEFF]:
        assert printable(f"a{chr(code)}b").isprintable()
    assert printable("józef ☂ 😀") == "józef ☂ 😀"
    assert printable("\ud800") == r"\ud800"


def test_json_stays_the_same_document() -> None:
    value = {"name": EVIL, "plain": "józef ☂ 😀", "half": "\ud800", EVIL: 1}
    for ascii_only in (False, True):
        shown = printable_json(json.dumps(value, ensure_ascii=ascii_only))
        assert shown.isprintable()
        assert json.loads(shown) == value
    assert "józef ☂ 😀" in printable_json(json.dumps(value, ensure_ascii=False))


# Records of the log output


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What the library logs, as a program's default format shows it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("AT %(levelname)s %(name)s: %(message)s"))
    top = logging.getLogger("ledgerq")
    before = top.level
    top.addHandler(handler)
    top.setLevel(logging.DEBUG)
    yield stream
    top.setLevel(before)
    top.removeHandler(handler)


def raised(error: E) -> E:
    try:
        raise error
    except BaseException:
        return error


@pytest.mark.parametrize("area", ["worker", "queue", "projections", "store"])
def test_arguments_of_a_message_are_escaped(lines: io.StringIO, area: str) -> None:
    log = logger(area)  # type: ignore[arg-type]
    log.warning("queue %s and %r, %d %g: %s", EVIL, EVIL, 3, 0.5, StoreUnavailable(EVIL), extra=about("x"))
    (line,) = lines.getvalue().splitlines()
    assert line == f"AT WARNING ledgerq.{area}: queue {SHOWN} and {EVIL!r}, 3 0.5: {SHOWN}"


def test_what_is_fit_stays_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    error = ValueError("plain")
    with caplog.at_level(logging.INFO, "ledgerq"):
        logger("store").warning("%s %s %d", "ü", error, 1, exc_info=error)
    (record,) = caplog.records
    assert record.args == ("ü", error, 1)
    assert record.getMessage() == "ü plain 1"


def test_attributes_are_escaped_too() -> None:
    assert about("x", queue=EVIL, count=3) == {"ledgerq_event": "x", "ledgerq_queue": SHOWN, "ledgerq_count": 3}
    assert about_job("x", bytes(16), EVIL, 1, 2)["ledgerq_queue"] == SHOWN


def test_a_traceback_forges_no_line(lines: io.StringIO) -> None:
    cause = raised(ValueError(EVIL))
    error = raised(RuntimeError("plain"))
    error.__cause__ = cause
    group = raised(ExceptionGroup("several", [ValueError("one"), raised(KeyError(EVIL))]))
    group.add_note(EVIL)
    for one in (cause, error, group):
        logger("worker").error("failed", exc_info=one, extra=about("x"))
    shown = lines.getvalue().splitlines()
    assert all(line.startswith(("AT ERROR ledgerq.worker: failed", "  ")) for line in shown)
    assert all(line.isprintable() for line in shown)
    assert any("all is lost" in line for line in shown)
    assert any("RuntimeError: plain" in line for line in shown)


def test_the_traceback_of_a_plain_error_is_left_to_the_formatter(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    with caplog.at_level(logging.INFO, "ledgerq"):
        logger("worker").error("failed", exc_info=raised(ValueError("plain")))
        logger("worker").error("failed", exc_info=raised(Broken()))
    first, second = caplog.records
    assert "\n  Traceback" not in logging.Formatter().format(first)
    assert "Broken" in logging.Formatter().format(second)


async def test_what_a_queue_and_its_worker_say(lines: io.StringIO) -> None:
    async def handler(job: JobContext) -> None:
        if job.payload == b"dead":
            raise Dead(EVIL)
        raise ValueError(EVIL)

    async with Rig() as rig:
        for payload in (b"dead", b"raise"):
            await rig.queue.enqueue(EVIL, payload, max_attempts=1)
        worker = Worker(rig.queue, name=EVIL)
        worker.handler(EVIL)(handler)
        await worker.run(until_empty=True)
        await rig.queue.enqueue(EVIL, b"lease", max_attempts=1)
        await rig.queue.claim(EVIL, lease=1)
        await rig.advance(5)
        await asyncio.sleep(0)
    shown = lines.getvalue().splitlines()
    assert sum("dead" in line for line in shown if line.startswith("AT ")) == 3
    assert all(line.startswith(("AT ", "  ")) and line.isprintable() for line in shown)


# The terminal


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    """A store in which all that can be named is named by an attacker."""
    url = str(tmp_path_factory.mktemp("hostile") / "store")

    async def make() -> list[str]:
        async with Queue.open(url) as queue:
            more = {"headers": {f"header{EVIL}": f"value{EVIL}"}, "unique_key": f"key{EVIL}"}
            first = await queue.enqueue(EVIL, EVIL.encode(), **more)  # type: ignore[arg-type]
            (claim,) = await queue.claim(EVIL, worker=f"worker{EVIL}")
            await queue.nack(claim, f"error{EVIL}", dead=True)
            second = await queue.enqueue(EVIL, b"", delay=1000)
            third = await queue.enqueue(EVIL, b"")
            (claim,) = await queue.claim(EVIL, worker=f"worker{EVIL}")
            await queue.cancel(third.job_id, **WHO)
            await queue.cancel(second.job_id, **WHO)
            await queue.nack(claim, f"error{EVIL}")
            await queue.pause(EVIL, **WHO)
            return [first.job_id, second.job_id, third.job_id]

    return url, asyncio.run(make())


@pytest.mark.parametrize("style", sampled(["terminal", "plain", "json"]))
def test_every_command_shows_it_on_lines_of_its_own(
    hostile: tuple[str, list[str]],
    style: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, job_ids = hostile
    if style == "terminal":
        monkeypatch.setattr("ledgerq.tools.console.output.Output.is_terminal", True, raising=False)
        monkeypatch.setenv("COLUMNS", "1000")
        monkeypatch.setenv("NO_COLOR", "1")
    cli = Cli(capsys, monkeypatch)
    more = ["--json"] if style == "json" else []
    commands = [["stats", url], ["jobs", url, EVIL], ["log", url], ["audit", url, "--deep"], ["doctor", url]]
    commands += [[word, url, job_id] for word in ("show", "history") for job_id in job_ids]
    for words in commands:
        ran = cli.ok(*words, *more)
        assert is_fit(ran.out), words
        assert is_fit(ran.err), words
        if words[0] in ("stats", "log", "show"):
            assert "gnp" in ran.out
        assert not any(line.startswith("2026-01-01") for line in ran.out.splitlines())
    for words in (["show", url, EVIL], ["stats", url, "--as-of", EVIL], ["stats", EVIL], [EVIL]):
        ran = cli(*words, *more)
        assert ran.code != 0
        assert ran.message.isprintable()


@pytest.mark.proof
def test_commands_that_write_do_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys, monkeypatch)
    url = tmp_path / "store"
    for words in (
        ["enqueue", url, EVIL, "x", "--unique-key", EVIL],
        ["enqueue", url, EVIL, "x", "--unique-key", EVIL],
        ["pause", url, EVIL, "--actor", EVIL, "--reason", EVIL],
        ["resume", url, EVIL, "--actor", EVIL, "--reason", EVIL],
        ["rebuild-projections", url, "--actor", EVIL, "--reason", EVIL],
    ):
        for more in ([], ["--json"]):
            ran = cli.ok(*words, *(more if words[0] == "enqueue" else []))
            assert is_fit(ran.out)
            assert is_fit(ran.err)
            assert not any(line.startswith("2026-01-01") for line in (ran.out + ran.err).splitlines())


# The pages of monitoring


@pytest.mark.parametrize("name", [EVIL, "a\\nb", 'a"b\\', "a\nb\\", "\\"])
async def test_labels_come_back_as_they_were(name: str) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue(name, b"")
        metrics = Metrics(rig.queue)
        for accept in ("", OPENMETRICS):
            page = await ask_app(metrics.asgi, accept=accept)
            assert samples(page)[series("ledgerq_jobs", queue=name, state="pending")] == 1
            text = page.text
            assert not any(line.startswith("2026-01-01") for line in text.split("\n"))
        metrics.close()


async def test_reasons_and_failures_of_pages_are_escaped() -> None:
    async def reasons() -> list[str]:
        return [EVIL]

    async def failing() -> list[str]:
        raise ValueError(EVIL)

    page = await ask_app(MetricsApp(CollectorRegistry(), reasons), "/readyz")
    assert page.json["reasons"] == [EVIL]
    assert is_fit(page.text)
    page = await ask_app(MetricsApp(CollectorRegistry(), failing), "/readyz")
    assert page.status == 500
    assert is_fit(page.text)
    assert page.text.count("\n") == 1


def test_the_test_itself_would_see_it() -> None:
    assert not is_fit(EVIL)
