"""The calls of limits and holds, as routes.py lists them."""

from ledgerq.worker.remote import limit_messages as messages
from ledgerq.worker.remote import wire
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.call import Call

__all__ = ["hold", "limit", "limits", "release_hold"]


async def limits(api: Api, call: Call) -> messages.LimitsAnswer:
    """The limits of the token's queues, and what is used of them."""
    found = [messages.limits_fields(one) for one in await api.queue.limits() if call.caller.sees(one.queue)]
    return messages.LimitsAnswer(limits=found)


async def limit(api: Api, call: Call) -> wire.Done:
    """Set all limits of a queue."""
    body: messages.LimitBody = call.body
    call.caller.allow("operate", call.name)
    given = {"max_running": body.max_running, "burst": body.burst}
    await api.queue.limit(call.name, rate=body.rate, **given, actor=api.actor(call), reason=body.reason)
    return wire.Done()


async def hold(api: Api, call: Call) -> wire.Done:
    """Let no job of a queue be claimed for a time."""
    body: messages.HoldBody = call.body
    call.caller.allow("operate", call.name)
    await api.queue.hold(call.name, seconds=body.seconds, actor=api.actor(call), reason=body.reason)
    return wire.Done()


async def release_hold(api: Api, call: Call) -> wire.Done:
    """Let a queue that is held go on."""
    call.caller.allow("operate", call.name)
    await api.queue.release_hold(call.name, actor=api.actor(call), reason=call.body.reason)
    return wire.Done()
