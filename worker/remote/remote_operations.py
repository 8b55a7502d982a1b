"""`bulk` and `schedules` of a queue on another machine: the methods of `Queue.bulk` and `Queue.schedules` over HTTP."""

from collections.abc import Awaitable, Sequence
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import BulkKind
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.selection import Filter, bulk_states, check_move
from ledgerq.worker.bulk import BulkResult
from ledgerq.worker.engine.decisions import operator
from ledgerq.worker.engine.scheduling import schedule_name
from ledgerq.worker.remote import operation_messages as messages
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.transport import Transport

__all__ = ["RemoteBulk", "RemoteSchedules"]

# A bulk of a million jobs takes minutes.
_BULK_S: Final = 1800.0

T = TypeVar("T", bound=wire.Message)


class _Ask(Protocol):
    """The way of a call to the service."""

    def __call__(
        self, method: str, path: str, answer: type[T], *, body: object = None, wait_s: float = 0.0
    ) -> Awaitable[tuple[T, bool]]: ...


class RemoteBulk:
    """The changes of many jobs: `requeue`, `cancel`, `delete`, `move` and `resume` of `Bulk`, see worker/bulk.py.

    One whose connection ends stays open: the call is made again, and finishes it.
    """

    def __init__(self, transport: Transport) -> None:
        """Not called by users: see `Queue.connect`."""
        self._ask: _Ask = transport.call

    async def requeue(self, filter: Filter, *, actor: str, reason: str, **options: Any) -> BulkResult:
        """Give dead jobs a new start."""
        return await self._run("requeue", filter, actor, reason, **options)

    async def cancel(self, filter: Filter, *, actor: str, reason: str, **options: Any) -> BulkResult:
        """Cancel jobs that wait, and ask the workers of claimed ones to stop."""
        return await self._run("cancel", filter, actor, reason, **options)

    async def delete(self, filter: Filter, *, actor: str, reason: str, **options: Any) -> BulkResult:
        """Delete finished jobs before their retention is over."""
        return await self._run("delete", filter, actor, reason, **options)

    async def move(self, filter: Filter, to: str, *, actor: str, reason: str, **options: Any) -> BulkResult:
        """Move jobs to another queue."""
        check_move(filter, to)
        return await self._run("move", filter, actor, reason, to=to, **options)

    async def _run(
        self,
        what: BulkKind,
        filter: Filter,
        actor: str,
        reason: str,
        *,
        dry_run: bool = True,
        expect: int | None = None,
        token: int | None = None,
        to: str | None = None,
    ) -> BulkResult:
        bulk_states(what, filter)
        actor, reason = operator(actor, reason)
        body = messages.BulkBody(
            what=what,
            filter=messages.filter_body(filter),
            dry_run=dry_run,
            expect=expect,
            token=token,
            to=to,
            actor=actor,
            reason=reason,
        )
        path = f"/v1/queues/{quote(filter.queue, safe='')}/bulk"
        answer, _ = await self._ask("POST", path, messages.BulkAnswer, body=body, wait_s=_BULK_S)
        return messages.bulk_result(answer)

    async def resume(self) -> list[BulkResult]:
        """Finish those that were interrupted."""
        answer, _ = await self._ask("POST", "/v1/bulks", messages.BulksAnswer, wait_s=_BULK_S)
        return [messages.bulk_result(one) for one in answer.bulks]


class RemoteSchedules:
    """The schedules of the store: the methods of `Schedules`, see worker/schedules.py, but for `set` and `next`."""

    def __init__(self, transport: Transport) -> None:
        """Not called by users: see `Queue.connect`."""
        self._ask: _Ask = transport.call

    async def set(self, *_: Any, **__: Any) -> Schedule:
        """Raise `InvalidArgument`: a schedule is set where the store is open, or stands in code."""
        raise InvalidArgument(
            "a schedule can't be set through a service yet: let it stand in code (Tasks.cron), or set it with "
            "queue.schedules.set in the process that opens the store"
        )

    async def list(self) -> Sequence[Schedule]:
        """All schedules, in order of their names."""
        answer, _ = await self._ask("GET", "/v1/schedules", messages.SchedulesAnswer)
        return [messages.schedule_of(fields) for fields in answer.schedules]

    async def get(self, name: str) -> Schedule:
        """A schedule as it is now. Raises `ScheduleNotFound`."""
        answer, _ = await self._ask("GET", _path(name), messages.ScheduleAnswer)
        return messages.schedule_of(answer.schedule)

    async def pause(self, name: str, *, actor: str, reason: str) -> Schedule:
        """Let it not tick until `resume`."""
        return messages.schedule_of(
            (await self._change(name, "pause", messages.ScheduleAnswer, actor, reason)).schedule
        )

    async def resume(self, name: str, *, actor: str, reason: str) -> Schedule:
        """Let it tick again, from now on."""
        answer = await self._change(name, "resume", messages.ScheduleAnswer, actor, reason)
        return messages.schedule_of(answer.schedule)

    async def remove(self, name: str, *, actor: str, reason: str) -> None:
        """Remove it; jobs that it added are left."""
        await self._change(name, "remove", wire.Done, actor, reason)

    async def run_now(self, name: str, *, actor: str, reason: str) -> str:
        """Add a job of it at once; returns the job's id. When an answer is lost, the repeated call adds one more."""
        return (await self._change(name, "run", messages.StartedAnswer, actor, reason)).id

    async def _change(self, name: str, what: str, answer: type[T], actor: str, reason: str) -> T:
        actor, reason = operator(actor, reason)
        body = wire.ReasonBody(reason=reason, actor=actor)
        found, _ = await self._ask("POST", f"{_path(name)}/{what}", answer, body=body)
        return found


def _path(name: str) -> str:
    return f"/v1/schedules/{quote(schedule_name(name), safe='')}"
