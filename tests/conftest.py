"""The configuration of all tests."""

import gc
import signal

import pytest
from hypothesis import settings

from tests.tiers import is_left_to_the_proof


def pytest_configure() -> None:
    """Hypothesis tries the same examples each time, without a clock. And Ctrl-C works, whoever started this.

    A shell has what it starts in the background ignore Ctrl-C, and children inherit that: tests send it to them.
    """
    settings.register_profile("ledgerq", derandomize=True, deadline=None, max_examples=60)
    settings.load_profile("ledgerq")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as fast what is not for the proof, before `-m` selects by marks."""
    for item in items:
        if is_left_to_the_proof(item):
            item.add_marker(pytest.mark.proof)
        if item.get_closest_marker("proof") is None:
            item.add_marker(pytest.mark.fast)


def pytest_collection_finish() -> None:
    """Thousands of tests, made once and for the whole run: no collection of garbage has to look at them again."""
    gc.freeze()
