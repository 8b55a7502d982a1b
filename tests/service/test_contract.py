"""The tests of `Queue`, `Worker` and tasks that use public calls alone, a second time over HTTP.

Left out is what reaches into the queue's process (its faults, its clock's turns, its log), or is about the end of that:
then the claims of a client go on.
"""

import importlib
import inspect
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import pytest

from tests.service.rig import RemoteRig

_QUICK: Final = ("test_results", "test_settlement", "test_tasks", "test_worker_handlers")
_MODULES: Final = (
    *_QUICK,
    "test_claim_stream",
    "test_clock_and_limits",
    "test_enqueue",
    "test_enqueue_claim",
    "test_job_logging",
    "test_prefetch",
    "test_refusals",
    "test_snooze",
    "test_unique",
    "test_waiting",
    "test_limits",
    "test_worker",
    "test_worker_cancel",
    "test_worker_odd_errors",
    "test_worker_settling",
    "test_worker_stop",
    "test_worker_threads",
    "test_worker_until_empty",
)
_OF_THE_PROCESS: Final = (
    "faults",
    "settle",
    "advance",
    ".log.",
    "_core",
    "rig.store",
    "crash(",
    "reopen(",
    "rig.disk",
    "all_tasks",
    "collector",
)
_QUICK_CASES: Final = 2

Test = Callable[[], Awaitable[None]]


def _cases() -> Iterator[Any]:
    for name in _MODULES:
        module = importlib.import_module(f"tests.unit.worker.{name}")
        found = 0
        for test_name, test in vars(module).items():
            if not test_name.startswith("test_") or not inspect.iscoroutinefunction(test):
                continue
            source = inspect.getsource(test)
            if "Rig(" in source and not inspect.signature(test).parameters and not _reaches_in(source):
                found += 1
                is_quick = name in _QUICK and found <= _QUICK_CASES
                yield pytest.param(test, id=f"{name}-{test_name}", marks=[] if is_quick else pytest.mark.proof)


def _reaches_in(source: str) -> bool:
    return any(words in source for words in _OF_THE_PROCESS)


@pytest.mark.parametrize("test", _cases())
async def test_over_http(test: Test, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[test.__module__], "Rig", RemoteRig)
    await test()


def test_there_is_a_good_number_of_them() -> None:
    assert len([*_cases()]) >= 80
