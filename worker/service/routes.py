"""The routes of the service, in one table: what openapi.json shows is made from it."""

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple
from urllib.parse import unquote

from ledgerq.worker.remote import limit_messages, wire
from ledgerq.worker.remote import operation_messages as messages
from ledgerq.worker.service import limit_calls, operations
from ledgerq.worker.service.api import Api
from ledgerq.worker.service.call import Call

__all__ = ["ROUTES", "Route", "find"]


class Route(NamedTuple):
    """A route: `{id}` or `{queue}` in its path is the call's name. `scope` empty: any token, or checked for each op.

    `is_long`: it may wait for long, and ends when its client goes.
    """

    method: str
    path: str
    scope: str
    act: Callable[[Api, Call], Awaitable[wire.Message]]
    body: type[wire.Message] | None
    answer: type[wire.Message]
    query: tuple[str, ...] = ()
    is_long: bool = False


ROUTES: Final = (
    Route("POST", "/v1/ops", "", Api.ops, wire.OpsBody, wire.OpsAnswer),
    Route("POST", "/v1/queues/{queue}/jobs", "enqueue", Api.enqueue, wire.JobsBody, wire.JobsAnswer),
    Route("POST", "/v1/claim", "work", Api.claim, wire.ClaimBody, wire.ClaimsAnswer, is_long=True),
    Route("POST", "/v1/heartbeat", "work", Api.heartbeat, wire.HeartbeatBody, wire.HeartbeatAnswer),
    Route("GET", "/v1/jobs/{id}", "read", Api.job, None, wire.JobAnswer, ("wait",), is_long=True),
    Route("GET", "/v1/jobs/{id}/history", "read", Api.history, None, wire.EventsAnswer),
    Route("GET", "/v1/jobs/{id}/payload", "payload", Api.payload, None, wire.PayloadAnswer),
    Route("GET", "/v1/jobs/{id}/result", "payload", Api.result, None, wire.ResultAnswer),
    Route("POST", "/v1/jobs/{id}/cancel", "operate", Api.cancel, wire.ReasonBody, wire.JobAnswer),
    Route("POST", "/v1/jobs/{id}/requeue", "operate", Api.requeue, wire.ReasonBody, wire.JobAnswer),
    Route("GET", "/v1/queues", "read", Api.queues, None, wire.QueuesAnswer),
    Route("GET", "/v1/queues/{queue}/stats", "read", Api.stats, None, wire.StatsAnswer),
    Route("GET", "/v1/queues/{queue}/jobs", "read", Api.jobs, None, wire.JobsPage, ("state", "limit", "after")),
    Route("POST", "/v1/queues/{queue}/pause", "operate", Api.pause, wire.ReasonBody, wire.Done),
    Route("POST", "/v1/queues/{queue}/resume", "operate", Api.resume, wire.ReasonBody, wire.Done),
    Route(
        "POST",
        "/v1/queues/{queue}/bulk",
        "operate",
        operations.bulk,
        messages.BulkBody,
        messages.BulkAnswer,
        is_long=True,
    ),
    Route("GET", "/v1/limits", "read", limit_calls.limits, None, limit_messages.LimitsAnswer),
    *(
        Route("POST", f"/v1/queues/{{queue}}/{what}", "operate", act, body, wire.Done)
        for what, act, body in (
            ("limit", limit_calls.limit, limit_messages.LimitBody),
            ("hold", limit_calls.hold, limit_messages.HoldBody),
            ("release-hold", limit_calls.release_hold, wire.ReasonBody),
        )
    ),
    Route("POST", "/v1/bulks", "operate", operations.finish_bulks, None, messages.BulksAnswer, is_long=True),
    Route("GET", "/v1/schedules", "read", operations.schedules, None, messages.SchedulesAnswer),
    Route("GET", "/v1/schedules/{name}", "read", operations.schedule, None, messages.ScheduleAnswer),
    *(
        Route("POST", f"/v1/schedules/{{name}}/{name}", "operate", act, wire.ReasonBody, answer)
        for name, act, answer in (
            ("pause", operations.pause_schedule, messages.ScheduleAnswer),
            ("resume", operations.resume_schedule, messages.ScheduleAnswer),
            ("remove", operations.remove_schedule, wire.Done),
            ("run", operations.run_schedule, messages.StartedAnswer),
        )
    ),
    Route("GET", "/v1/log", "read", Api.log, None, wire.EventsAnswer, ("from", "limit")),
    Route("GET", "/v1/options", "", Api.options, None, wire.OptionsAnswer),
    Route("GET", "/v1/writer", "", Api.writer, None, wire.WriterAnswer, ("wait",), is_long=True),
    Route("GET", "/v1/drained", "work", Api.drained, None, wire.DrainedAnswer, ("queue", "wait"), is_long=True),
)

_MAX_NAME_CHARS: Final = 3 * 255


def _key(path: str) -> tuple[str, ...]:
    """The parts of a path, without the one that is a name."""
    parts = path.split("/")
    return tuple("{}" if at == 3 else part for at, part in enumerate(parts))


_BY_PATH: Final[dict[tuple[str, ...], dict[str, Route]]] = {}
for _route in ROUTES:
    _BY_PATH.setdefault(_key(_route.path), {})[_route.method] = _route


def find(path: str) -> tuple[dict[str, Route], str] | None:
    """The routes of a path as it was sent, by their methods, and the name in it; None when there is none."""
    routes = _BY_PATH.get(_key(path)) if len(path) <= 2 * _MAX_NAME_CHARS else None
    if routes is None:
        return None
    parts = path.split("/")
    return routes, unquote(parts[3]) if len(parts) > 3 else ""
