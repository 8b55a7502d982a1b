"""The steps of one try: what an earlier try has done is not done again, and its value is there."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from ledgerq.eventlog.errors import InvalidArgument, InvalidState
from ledgerq.eventlog.runtime.event_loop import loop_or_none
from ledgerq.worker.claims import Claim
from ledgerq.worker.returned import ReturnType, hints_of

__all__ = ["DoneStep", "StepSource", "Steps"]

T = TypeVar("T")

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
_MAX_TYPES: Final = 1000


class DoneStep(NamedTuple):
    """A step that is done: its value as JSON, None for one that returned None."""

    value: bytes | None


class StepSource(Protocol):
    """The part of a queue by which a job has steps."""

    async def read_step(self, claim: Claim, name: str) -> DoneStep | None:
        """The step of this name if it is done, as `Queue.read_step`."""

    async def finish_step(self, claim: Claim, name: str, value: bytes | None) -> None:
        """Record that a step is done, as `Queue.finish_step`."""


class Steps:
    """The steps of one try, each by a name that no other step of the try has."""

    def __init__(self, source: StepSource, claim: Claim, in_thread: InThread, loop: asyncio.AbstractEventLoop) -> None:
        """`loop` is the event loop that owns the source."""
        self._source = source
        self._claim = claim
        self._in_thread = in_thread
        self._loop = loop
        self._names: set[str] = set()
        # The functions of a try run in one thread at a time.
        self._thread = asyncio.Lock()
        self._is_over = False

    def close(self) -> None:
        """Let no step begin any more: the try is over."""
        self._is_over = True

    async def run(self, name: str, function: Callable[[], Any], of: Callable[..., Any]) -> Any:
        """The value of a step, which is done by `function` unless it is done; the annotations of `of` have its type."""
        self._use(name)
        try:
            returned = _returned(name, of)
            done = await self._source.read_step(self._claim, name)
            if done is None:
                if _is_async(of):
                    value = await function()
                else:
                    async with self._thread:
                        value = await self._in_thread(function)
                    if inspect.isawaitable(value):
                        value = await value
                done = await self._finish(name, returned.encode(value))
            return returned.decode(done.value)
        except BaseException:
            self._names.discard(name)  # it is not done, and may be tried again
            raise

    def run_sync(self, name: str, function: Callable[[], Any], of: Callable[..., Any]) -> Any:
        """The same in the thread of a plain function, where `function` is called."""
        if loop_or_none() is not None:
            raise InvalidState("step_sync would block the event loop: use `await job.step(...)` here")
        if _is_async(of):
            raise InvalidArgument(f"the function of step {name!r} is async: call it in an async task, by job.step")
        self._use(name)
        try:
            returned = _returned(name, of)
            done = self._wait(self._source.read_step(self._claim, name))
            if done is None:
                done = self._wait(self._finish(name, returned.encode(function())))
            return returned.decode(done.value)
        except BaseException:
            self._names.discard(name)
            raise

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()

    async def _finish(self, name: str, value: bytes | None) -> DoneStep:
        await self._source.finish_step(self._claim, name, value)
        return DoneStep(value)

    def _use(self, name: str) -> None:
        if self._is_over:
            raise InvalidState("the try is over: no step of it can begin")
        if name in self._names:
            raise InvalidArgument(f"there is a step {name!r} in this try already: name each one, as in f'charge:{{i}}'")
        self._names.add(name)


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def _returned(name: str, function: Callable[..., Any]) -> ReturnType:
    """The type of what the function returns; what has no annotation returns any JSON."""
    while isinstance(function, partial):
        function = function.func
    try:
        hint = hints_of(f"step {name!r}", function).get("return", Any)
    except TypeError:  # of an object that is called, or a function made in C
        hint = Any
    try:
        return _type_of(name, hint)
    except TypeError:  # an annotation that can't be hashed
        return ReturnType(f"step {name!r}", hint)


@lru_cache(_MAX_TYPES)
def _type_of(name: str, hint: Any) -> ReturnType:
    return ReturnType(f"step {name!r}", hint)
