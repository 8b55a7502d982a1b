"""A pool of daemon threads: a handler that doesn't end, or a disk that hangs, must not keep the process from ending.

(The threads of `concurrent.futures.ThreadPoolExecutor` are joined at exit, however long that takes.)
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, ParamSpec, TypeVar

__all__ = ["DaemonThreads"]

P = ParamSpec("P")
T = TypeVar("T")
_Call = tuple["Future[Any]", Callable[[], Any]]


class DaemonThreads(Executor):
    """A pool in which every call begins at once, in an idle thread or a new one: its user bounds their number."""

    def __init__(self, name: str) -> None:
        """Name the threads `name` and a number."""
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._count = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Call `fn` in a thread."""
        future: Future[T] = Future()
        self._calls.put((future, partial(fn, *args, **kwargs)))
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._serve, name=f"{self._name}-{self._count}", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # None begins at the end of the interpreter, from Python 3.12 on: what closes a queue then has to wait.
                self._serve(ends=True)
            else:
                self._count += 1
        return future

    def _serve(self, *, ends: bool = False) -> None:
        """Make call after call; with `ends` only one, by the thread that has submitted it."""
        while (call := self._calls.get()) is not None:
            future, function = call
            runs = future.set_running_or_notify_cancel()
            result, error = _outcome(function) if runs else (None, None)
            # Idle before the outcome is known: those who act on it and submit at once must find this thread, and start
            # no other. What they submit waits no longer than it takes to call the future's callbacks.
            if not ends:
                self._idle.release()
            if error is not None:
                future.set_exception(error)
            elif runs:
                future.set_result(result)
            # What a handler got and gave is not kept while the thread is idle.
            call = future = function = result = error = None  # type: ignore[assignment]
            if ends:
                return

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let each thread end after the call that it is in, without waiting for that."""
        for _ in range(self._count):
            self._calls.put(None)


def _outcome(function: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return function(), None
    except (StopIteration, SystemExit, GeneratorExit) as error:
        # No future of asyncio takes the first, so a coroutine that awaits the call would wait for ever; the second
        # would end its event loop, and the third would close it instead of being raised in it.
        raised = RuntimeError(f"the call raised {error!r}")
        raised.__cause__ = error
        return None, raised
    except BaseException as error:
        return None, error
