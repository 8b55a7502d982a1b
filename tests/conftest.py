"""The configuration of all tests."""

import signal


def pytest_configure() -> None:
    """A shell has what it starts in the background ignore Ctrl-C, and children inherit that: tests send it to them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
