"""The calls for operators of many jobs and of schedules, as routes.py lists them; the others are in api.py."""

from typing import Any

from ledgerq.eventlog.errors import InvalidArgument, ScheduleNotFound
from ledgerq.projections.schedule import Schedule
from ledgerq.worker.bulk import BulkResult
from ledgerq.worker.remote import operation_messages as messages
from ledgerq.worker.remote import wire
from ledgerq.worker.remote.service_errors import NotAllowed
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.call import Call

__all__ = [
    "bulk",
    "finish_bulks",
    "pause_schedule",
    "remove_schedule",
    "resume_schedule",
    "run_schedule",
    "schedule",
    "schedules",
]


async def bulk(api: Api, call: Call) -> messages.BulkAnswer:
    """Requeue, cancel, delete or move all jobs of a queue that match; a dry run unless `dry_run` is false."""
    body: messages.BulkBody = call.body
    call.caller.allow("operate", call.name)
    filter, change = messages.filter_of(call.name, body.filter), api.queue.bulk
    options: dict[str, Any] = {"dry_run": body.dry_run, "expect": body.expect, "token": body.token}
    options |= {"actor": api.actor(call), "reason": body.reason}
    if (body.what == "move") != (body.to is not None):
        raise InvalidArgument("to names the queue for what='move', and is for nothing else")
    result: BulkResult
    if body.to is not None:
        call.caller.allow("operate", body.to)
        result = await change.move(filter, body.to, **options)
    else:
        result = await getattr(change, body.what)(filter, **options)
    return messages.bulk_answer(result)


async def finish_bulks(api: Api, call: Call) -> messages.BulksAnswer:
    """Finish the changes of many jobs that were interrupted; only for tokens of all queues."""
    if call.caller.prefixes is not None:
        raise NotAllowed(f"the token {call.caller.name!r} is for some queues, and these may be of all")
    return messages.BulksAnswer(bulks=[messages.bulk_answer(result) for result in await api.queue.bulk.resume()])


async def schedules(api: Api, call: Call) -> messages.SchedulesAnswer:
    """The schedules that add jobs to the token's queues."""
    found = await api.queue.schedules.list()
    mine = [messages.schedule_fields(one) for one in found if call.caller.sees(one.setting.queue)]
    return messages.SchedulesAnswer(schedules=mine)


async def _mine(api: Api, call: Call) -> Schedule:
    found = await api.queue.schedules.get(call.name)
    if not call.caller.sees(found.setting.queue):
        raise ScheduleNotFound(f"there is no schedule {call.name!r} for the queues of this token")
    return found


async def schedule(api: Api, call: Call) -> messages.ScheduleAnswer:
    """A schedule as it is now."""
    return messages.ScheduleAnswer(schedule=messages.schedule_fields(await _mine(api, call)))


async def pause_schedule(api: Api, call: Call) -> messages.ScheduleAnswer:
    """Let a schedule not tick until it is resumed."""
    await _mine(api, call)
    found = await api.queue.schedules.pause(call.name, actor=api.actor(call), reason=call.body.reason)
    return messages.ScheduleAnswer(schedule=messages.schedule_fields(found))


async def resume_schedule(api: Api, call: Call) -> messages.ScheduleAnswer:
    """Let a schedule tick again, from now on."""
    await _mine(api, call)
    found = await api.queue.schedules.resume(call.name, actor=api.actor(call), reason=call.body.reason)
    return messages.ScheduleAnswer(schedule=messages.schedule_fields(found))


async def remove_schedule(api: Api, call: Call) -> wire.Done:
    """Remove a schedule that is not in code; jobs that it added are left."""
    await _mine(api, call)
    await api.queue.schedules.remove(call.name, actor=api.actor(call), reason=call.body.reason)
    return wire.Done()


async def run_schedule(api: Api, call: Call) -> messages.StartedAnswer:
    """Add a job of a schedule at once."""
    await _mine(api, call)
    job_id = await api.queue.schedules.run_now(call.name, actor=api.actor(call), reason=call.body.reason)
    return messages.StartedAnswer(id=job_id)
