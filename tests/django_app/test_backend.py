"""The backend of Django's tasks: what is enqueued, run by its worker, and read again, in one process."""

import asyncio
import io
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings

BACKEND = "ledgerq.tools.django.backend.LedgerqBackend"
settings.configure(USE_TZ=True, INSTALLED_APPS=["ledgerq.tools.django"], LOGGING_CONFIG=None)
django.setup()

from django.core.exceptions import ImproperlyConfigured  # noqa: E402
from django.core.management import CommandError, call_command  # noqa: E402
from django.test import override_settings  # noqa: E402

from ledgerq.eventlog.errors import InvalidArgument, InvalidState  # noqa: E402
from ledgerq.tools.django.backend import LedgerqBackend  # noqa: E402
from ledgerq.tools.django.connections import close_queues, opened_queue, use_queue  # noqa: E402
from ledgerq.tools.django.task_results import error_of  # noqa: E402
from ledgerq.tools.django.task_worker import TaskRunner  # noqa: E402
from ledgerq.tools.django.tasks_api import DoesNotExist, _part, backends, signals  # noqa: E402
from ledgerq.worker.sync.sync_queue import Queue  # noqa: E402
from ledgerq.worker.worker import Worker  # noqa: E402
from tests.django_app import shop_tasks as shop  # noqa: E402

Mismatch: Any = _part("exceptions").TaskResultMismatch
READY, RUNNING, FAILED, SUCCESSFUL = "READY", "RUNNING", "FAILED", "SUCCESSFUL"


@pytest.fixture(autouse=True)
def shop_settings(tmp_path: Path) -> Iterator[None]:
    """The settings of one test, with a store of its own."""
    options = {"url": tmp_path / "jobs", "share": False, "default": {"backoff_base_s": 0.0, "max_attempts": 2}}
    tasks = {"default": {"BACKEND": BACKEND, "OPTIONS": options}}
    shop.ran.clear()
    with override_settings(TASKS=tasks):
        yield
        close_queues()


def work(*arguments: str) -> str:
    """Run the worker until its queues are empty; returns what it said."""
    said = io.StringIO()
    call_command("ledgerq_worker", "--until-empty", *arguments, stdout=said)
    return said.getvalue()


def test_a_task_is_enqueued_run_and_its_result_read() -> None:
    sent: list[tuple[str, str, str]] = []
    for name in ("task_enqueued", "task_started", "task_finished"):

        def send(sender: Any, task_result: Any, name: str = name, **_: Any) -> None:
            assert sender is LedgerqBackend
            sent.append((name, task_result.id, str(task_result.status)))

        getattr(signals, name).connect(send, weak=False, dispatch_uid=name)
    try:
        result = shop.add.enqueue(1, b=2)
        assert (result.status, result.args, result.kwargs, result.attempts) == (READY, [1], {"b": 2}, 0)
        again = shop.add.get_result(result.id)
        assert (again.status, again.started_at, again.is_finished) == (READY, None, False)
        assert abs(again.enqueued_at - datetime.now(UTC)) < timedelta(hours=1)
        assert "w1 works on default of" in work("--name", "w1")
        result.refresh()
    finally:
        for name in ("task_enqueued", "task_started", "task_finished"):
            getattr(signals, name).disconnect(dispatch_uid=name)
    assert (result.status, result.return_value, result.worker_ids, result.errors) == (SUCCESSFUL, 3, ["w1"], [])
    assert result.enqueued_at <= result.started_at == result.last_attempted_at <= result.finished_at
    assert sent == [
        *(("task_enqueued", result.id, READY), ("task_started", result.id, RUNNING)),
        ("task_finished", result.id, SUCCESSFUL),
    ]
    queue = opened_queue(backends["default"].place)
    assert queue.get(result.id).task == "tests.django_app.shop_tasks.add"
    with pytest.raises(Mismatch):
        shop.aadd.get_result(result.id)


def test_async_tasks_results_and_tasks_that_enqueue() -> None:
    asynchronous, outer, nothing = shop.aadd.enqueue(1, 2), shop.enqueue_another.enqueue(4), shop.put_off.enqueue()
    work_until_snoozed()
    asynchronous.refresh()
    outer.refresh()
    nothing.refresh()
    assert asynchronous.return_value == {"sum": 3}
    assert shop.add.get_result(outer.return_value).return_value == 8
    assert (nothing.status, nothing.attempts) == (READY, 0)


def work_until_snoozed() -> None:
    """Run the worker until nothing is left but what was put off."""

    async def main() -> None:
        backend = backends["default"]
        async with backend.place.open_here() as queue:
            face = Queue(queue)
            use_queue(backend.place, face)
            worker = Worker(queue, name="w")
            worker.handler("default", keeps_result=True)(TaskRunner(backend, face, "w"))
            working = asyncio.create_task(worker.run(signals=False))
            while True:
                changed = queue._core.next_change()  # before the look: the last change may come meanwhile
                stats = await queue.stats("default")
                if stats.scheduled and not stats.pending and not stats.claimed:
                    break
                await changed
            worker.stop()
            await working

    close_queues()
    asyncio.run(main())


def test_what_fails_is_tried_again_and_all_errors_are_told() -> None:
    failed, later, buried, unkept = (
        shop.refuse.enqueue("not\nyou: never"),
        shop.second.enqueue("ann"),
        shop.bury.enqueue(),
        shop.unkeepable.enqueue(),
    )
    work("--name", "w1")
    for result in (failed, later, buried, unkept):
        result.refresh()
    assert (failed.status, failed.attempts, failed.worker_ids) == (FAILED, 2, ["w1", "w1"])
    assert [error.exception_class for error in failed.errors] == [shop.Refused, shop.Refused]
    assert failed.errors[0].traceback.endswith("shop_tasks.Refused: not\nyou: never")
    assert "task_worker.py" not in failed.errors[0].traceback
    with pytest.raises(ValueError, match="failed"):
        _ = failed.return_value
    assert (later.status, later.return_value) == (SUCCESSFUL, ["ann", 2, ["LookupError"]])
    assert (buried.status, buried.attempts, buried.errors[0].traceback) == (FAILED, 1, "no such address")
    assert buried.errors[0].exception_class.__name__ == "Dead"
    assert (unkept.status, unkept.attempts) == (FAILED, 1)
    assert unkept.errors[0].exception_class.__name__ == "ResultDoesntFit"


def test_priorities_are_kept_and_later_tasks_wait() -> None:
    tomorrow = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    results = [
        shop.add.using(priority=priority, run_after=after).enqueue(priority, 0)
        for priority, after in ((-100, None), (0, None), (100, None), (50, tomorrow))
    ]
    queue = opened_queue(backends["default"].place)
    assert [queue.get(result.id).priority for result in results] == [1100, 1000, 900, 950]
    assert shop.add.get_result(results[3].id).task.run_after == tomorrow
    queue.cancel(results[3].id, actor="ann", reason="not tomorrow")
    work("--concurrency", "1")
    assert [priority for priority, _ in shop.ran] == [100, 0, -100]
    cancelled = shop.add.get_result(results[3].id)
    assert (cancelled.status, cancelled.errors[0].exception_class.__name__) == (FAILED, "JobCancelled")
    assert cancelled.errors[0].traceback == "ann: not tomorrow"


def test_async_views_enqueue_and_read_without_blocking_their_loop() -> None:
    async def view() -> tuple[Any, Any]:
        first, second = await asyncio.gather(shop.add.aenqueue(1, 2), shop.add.aenqueue(3, 4))
        with pytest.raises(InvalidState, match=r"await task\.aenqueue"):
            shop.add.enqueue(1, 2)
        with pytest.raises(InvalidState, match=r"await task\.aget_result"):
            shop.add.get_result(first.id)
        await first.arefresh()
        return first, await shop.add.aget_result(second.id)

    first, second = asyncio.run(view())
    assert (first.status, first.args, second.args) == (READY, [1, 2], [3, 4])


def test_what_is_not_there_or_no_task_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    queue = opened_queue(backends["default"].place)
    plain = queue.enqueue("other", b"bytes")
    for result_id in ("", "nonsense", "01ARZ3NDEKTSV4RRFFQ69G5FAV", plain.job_id):
        with pytest.raises(DoesNotExist):
            shop.add.get_result(result_id)
    with pytest.raises(TypeError):
        shop.add.enqueue(object(), 1)
    assert queue.stats("default").pending == 0
    gone = queue.enqueue("default", b'{"args":[],"kwargs":{}}', task="tests.django_app.shop_tasks.no_task")
    spoilt = queue.enqueue("default", b"[]", task="tests.django_app.shop_tasks.add")
    with caplog.at_level(logging.ERROR):
        work_until_snoozed()
    queue = opened_queue(backends["default"].place)
    assert (queue.get(gone.job_id).state, queue.get(gone.job_id).attempt) == ("scheduled", 0)
    assert "is no task of Django, but function" in queue.get(gone.job_id).error
    assert (queue.get(spoilt.job_id).state, queue.get(spoilt.job_id).error_type) == ("dead", "ArgumentsDontFit")


def test_options_and_the_commands_arguments_are_checked(tmp_path: Path) -> None:
    flags = ("defer", "async_task", "get_result", "priority")
    assert all(getattr(LedgerqBackend, f"supports_{flag}") for flag in flags)
    for options in ({}, {"url": 3}, {"url": "jobs", "urk": 1}, {"url": "jobs", "default": {"lease": 1}}):
        with pytest.raises(ImproperlyConfigured, match=r"TASKS\['default'\]\['OPTIONS'\]"):
            LedgerqBackend("default", {"OPTIONS": options})
    assert backends["default"].check() == []
    places = [
        LedgerqBackend("default", {"OPTIONS": {"url": url}}).place for url in (tmp_path, "jobs", "http://a:1", "s3://b")
    ]
    assert [place.share for place in places] == [True, True, False, False]
    (warning,) = LedgerqBackend("default", {"OPTIONS": {"url": "memory:///"}}).check()
    assert warning.id == "ledgerq.W001"
    shop.add.enqueue(1, 2)
    other = LedgerqBackend("b", {"OPTIONS": {"url": tmp_path / "jobs", "max_attempts": 1}})
    with pytest.raises(InvalidArgument, match="open with other options"):
        other.enqueue(shop.add, [], {})
    with pytest.raises(CommandError, match="a name has 1 to 255 bytes"):
        work("--queue", "")
    dummy = {"BACKEND": f"{_part('').__name__}.backends.dummy.DummyBackend"}
    with override_settings(TASKS={"default": dummy}), pytest.raises(CommandError, match="no LedgerqBackend"):
        work()
    empty = {"BACKEND": BACKEND, "QUEUES": [], "OPTIONS": {"url": tmp_path / "jobs"}}
    with override_settings(TASKS={"default": empty}), pytest.raises(CommandError, match="say which with --queue"):
        work()


def test_the_path_of_an_exception_is_found_in_its_traceback() -> None:
    found = [
        error_of("Refused", "Traceback\n  x\nshop.errors.Refused: no\nRefused: y"),
        error_of("ValueError", "Traceback\nValueError: no"),
        error_of("TimeoutError", "timed out after 5 s"),
        error_of("Strange", "cut off"),
        error_of("", "lease expired"),
    ]
    assert [error.exception_class_path for error in found] == [
        *("shop.errors.Refused", "builtins.ValueError", "builtins.TimeoutError", "builtins.Exception"),
        "ledgerq.ClaimLost",
    ]
    assert [error.exception_class for error in found[1:]]
