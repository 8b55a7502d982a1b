"""Calls from other threads to what an event loop owns: made there, and waited for here."""

import asyncio
import concurrent.futures
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

from ledgerq.eventlog.errors import InvalidState, QueueClosed
from ledgerq.eventlog.runtime.event_loop import check_process, loop_or_none, running_loop
from ledgerq.eventlog.runtime.process import own_pid

__all__ = ["Face", "LoopThread", "Owner", "blocking", "refuse_loop"]

P = ParamSpec("P")
T = TypeVar("T")

# So often a thread that waits looks whether the loop that is to answer has ended.
_LOOK_S: Final = 1.0
_running: Final[set["asyncio.Task[None]"]] = set()


def refuse_loop(instead: str) -> None:
    """Raise `InvalidState` where an event loop runs in this thread, which a call that waits would block."""
    if loop_or_none() is not None:
        raise InvalidState(f"this would block the event loop that runs in this thread: {instead}")


class Owner(NamedTuple):
    """The event loop and the process that own a queue (or a connection), described by `what`."""

    what: str
    loop: asyncio.AbstractEventLoop
    pid: int

    @classmethod
    def here(cls, what: str) -> "Owner":
        """The loop that runs in this thread, as the owner."""
        return cls(what, running_loop(), own_pid())

    def start(
        self, call: Callable[[], Awaitable[T]], unreceived: Callable[[T], Awaitable[object]] | None = None
    ) -> "concurrent.futures.Future[T]":
        """Make a call on the loop, from any thread; cancelling the future cancels the call.

        `unreceived` is called with a result that came when the future was cancelled already. Raises `QueueClosed` when
        the loop has ended, and `WrongProcess` in a forked child.
        """
        check_process(self.what, self.pid)
        answer: concurrent.futures.Future[T] = concurrent.futures.Future()

        async def run() -> None:
            try:
                value = await call()
            except asyncio.CancelledError:
                with suppress(concurrent.futures.InvalidStateError):
                    answer.set_exception(self._ended())
            except Exception as error:
                with suppress(concurrent.futures.InvalidStateError):
                    answer.set_exception(error)
            else:
                try:
                    answer.set_result(value)
                except concurrent.futures.InvalidStateError:
                    if unreceived is not None:
                        await unreceived(value)

        def begin() -> None:
            if answer.cancelled():
                return
            task = self.loop.create_task(run())
            _running.add(task)  # a loop keeps no task alive
            task.add_done_callback(_running.discard)

            def cancel(answer: "concurrent.futures.Future[T]") -> None:
                if answer.cancelled():
                    with suppress(RuntimeError):  # the loop has ended, and with it the task
                        self.loop.call_soon_threadsafe(task.cancel)

            answer.add_done_callback(cancel)

        try:
            self.loop.call_soon_threadsafe(begin)
        except RuntimeError as error:
            raise self._ended() from error
        return answer

    def wait(
        self,
        call: Callable[[], Awaitable[T]],
        instead: str,
        unreceived: Callable[[T], Awaitable[object]] | None = None,
    ) -> T:
        """Make a call on the loop and wait for it; what interrupts the wait (Ctrl-C, say) cancels the call.

        `instead`: what to do where an event loop runs in this thread; the rest is as for `start`.
        """
        refuse_loop(instead)
        answer = self.start(call, unreceived)
        try:
            while True:
                try:
                    return answer.result(_LOOK_S)
                except TimeoutError:
                    if answer.done():  # the call's own
                        return answer.result()
                    if self.loop.is_closed():
                        raise self._ended() from None
        except BaseException:
            if not answer.cancel() and unreceived is not None and answer.exception() is None:
                self.start(functools.partial(unreceived, answer.result()))
            raise

    def _ended(self) -> QueueClosed:
        return QueueClosed(f"{self.what} is closed, or its event loop has ended; open it again")


class LoopThread:
    """A thread that runs an event loop until `end`. It is a daemon: nothing of it holds up the end of the process."""

    def __init__(self) -> None:
        ready: concurrent.futures.Future[Owner] = concurrent.futures.Future()

        async def main() -> None:
            self._over = asyncio.Event()
            ready.set_result(Owner.here("the queue"))
            await self._over.wait()

        self._thread = threading.Thread(target=lambda: asyncio.run(main()), name="ledgerq-queue", daemon=True)
        self._thread.start()
        self.owner = ready.result()
        """Its event loop."""

    def end(self) -> None:
        """End the loop, with what runs on it, and the thread; once."""
        self.owner.loop.call_soon_threadsafe(self._over.set)
        self._thread.join()


class Face:
    """The base of what gives the methods of an object that an event loop owns to all threads."""

    def __init__(self, owner: Owner, behind: Any) -> None:
        self._owner = owner
        self._behind = behind

    def _wait(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._owner.wait(lambda: getattr(self._behind, name)(*args, **kwargs), self._instead(name))

    def _instead(self, name: str) -> str:
        return f"use `await` and {name} of the queue that Queue.open of ledgerq itself gives"


def blocking(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Face, P], T]:
    """The method of a face that makes a call of `method`, of what is behind, and waits for it."""
    name = method.__name__

    @functools.wraps(method)
    def call(self: Face, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found: T = self._wait(name, args, kwargs)
        return found

    return call
