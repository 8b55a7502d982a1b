"""SIGTERM and SIGINT for every worker of a process: each is called; after the last one the handlers are as before.

A loop's own `add_signal_handler` holds one handler, so a second worker would silence the first.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

__all__ = ["listen"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class _Relay:
    """The process's handler of one signal while workers listen; `before` was there until then."""

    def __init__(self, before: Any) -> None:
        self.before = signal.SIG_DFL if before is None else before
        self.listeners: list[Callable[[], object]] = []

    def __call__(self, number: int, frame: FrameType | None) -> None:
        for listener in [*self.listeners]:
            listener()


def listen(callback: Callable[[], None]) -> Callable[[], None]:
    """Call `callback` on the running loop at each signal; call the result to end that.

    Outside the main thread there are no signals to listen to, and this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()

    def tell() -> object:
        return loop.call_soon_threadsafe(callback)

    for number in _SIGNALS:
        relay = signal.getsignal(number)
        if not isinstance(relay, _Relay):
            relay = _Relay(relay)
            signal.signal(number, relay)
        relay.listeners.append(tell)
    return lambda: _end(tell)


def _end(listener: Callable[[], object]) -> None:
    for number in _SIGNALS:
        relay = signal.getsignal(number)
        if isinstance(relay, _Relay) and listener in relay.listeners:
            relay.listeners.remove(listener)
            if not relay.listeners:
                signal.signal(number, relay.before)
