"""Operators of schedules in a simulated world: they set, pause, resume, remove and run them by hand.

What the ledger then holds of them, and their ticks, is judged by the model (tests/model/schedules.py).
"""

from datetime import datetime, timedelta
from typing import Any, Final

from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import InvalidState, ScheduleNotFound
from ledgerq.eventlog.events import ScheduleEvent
from ledgerq.worker.tasks.registry import Tasks
from ledgerq.worker.tasks.task import Task
from tests.model.job import Violation
from tests.simulation.claimers import Calls
from tests.simulation.process import Process

__all__ = ["Schedulers"]

_tasks: Final = Tasks("simulated")


def _task(queue: str) -> Task[..., Any]:
    @_tasks.task(queue=queue, name=f"tick of {queue}")
    def run(number: int, tick: datetime) -> None: ...

    return run


_TASKS: Final = {queue: _task(queue) for queue in ("mail", "scan", "bill")}


class Schedulers(Calls):
    """The operators of schedules in a simulated world."""

    async def _schedule(self, process: Process, action: str, name: str, setting: dict[str, Any] | None = None) -> None:
        ledger, model = self._world.ledger, self._oracle.model.schedules
        asked = len(ledger.records)
        known: dict[str, Any] = {"actor": "someone", "reason": self.give(name, f"a whim at {asked}")}
        schedules, call = self._queue(process).schedules, f"schedule {action} {name}"
        try:
            if setting is not None:
                found: Any = await self.call(process, call, schedules.set(name, **self._setting(name, setting, known)))
            else:
                found = await self.call(process, call, getattr(schedules, action)(name, **known))
        except InvalidState as refused:  # `run_now` says so, of a schedule that is another one meanwhile
            if action != "run_now" or "set anew meanwhile" not in str(refused):
                raise
            return
        except ScheduleNotFound:
            await self.call(process, call, self._queue(process).log.committed())  # its removal may be on its way
            if name in model.by_name and not self._changed(name, asked):
                raise Violation("lost", f"{call}: it is there, and was not found") from None
            return
        self._world.say(f"p{process.number} {call}")
        if action == "run_now" and job_id_bytes(found) not in self._oracle.model.jobs:
            raise Violation("too early", f"{call} returned before its job was durable")
        if not self._changed(name, asked) and action == "remove":
            raise Violation("too early", f"{call} returned before its event was durable")
        changed = [one.event for one in ledger.records[asked:] if isinstance(one.event, ScheduleEvent)]
        if action in ("pause", "resume") and not any(one.name == name for one in changed):
            one = model.by_name.get(name)
            if one is None or one.paused != (action == "pause"):
                raise Violation("too early", f"{call} returned before its event was durable")

    def _setting(self, name: str, setting: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call of `set`; their number, never the same twice, is noted as asked for."""
        given, queue = dict(setting), setting["queue"]
        number = given.pop("number")
        self._oracle.scheduled[number] = (name, queue)
        self.give(name, f'{known["reason"]} (arguments: {{"number": {number}}})')
        del given["queue"]
        every_ms = given.pop("every_ms", None)
        when = given.pop("cron", None) or timedelta(milliseconds=every_ms)
        return {"when": when, "task": _TASKS[queue], "args": {"number": number}, **given, **known}

    def _changed(self, name: str, since: int) -> bool:
        events = (one.event for one in self._world.ledger.records[since:])
        return any(isinstance(event, ScheduleEvent) and event.name == name for event in events)
