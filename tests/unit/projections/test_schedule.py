"""The fold of schedules: what it refuses, what an audit of what came since, and a defect of a writer, come to."""

import json
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog.codec import EMPTY_HEAD
from ledgerq.eventlog.errors import LogCorrupt
from ledgerq.eventlog.events import (
    Enqueued,
    ScheduleEvent,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScheduleSet,
    Ticked,
)
from ledgerq.eventlog.memory import MemoryReader
from ledgerq.eventlog.recorded_audit import AuditStart, RecordedAudit, decode_recorded_audit, encode_recorded_audit
from ledgerq.projections.audit import audit
from ledgerq.projections.fold import Fold
from ledgerq.projections.incremental_audit import audit_since
from ledgerq.projections.index_keys import SCHEDULE, TICK
from ledgerq.projections.schedule import Schedule
from tests.support.damaged_rows import note
from tests.support.operators import WHO
from tests.support.rig import Rig

JOB = bytes(15) + b"\x01"
SET = ScheduleSet(
    *("s", "every 1000", "UTC", "mail", "send", None, None, False, "last", "skip", 60_000, 0, ""),
    *(bytes(32), 2000, 2000, 2, "ann", ""),
)
ENQUEUED = Enqueued(JOB, "mail", 1000, 3, 0, None, "finished", 21, bytes(32))
PAUSED = SchedulePaused("s", "ann", "")
TICK_OF_2 = Ticked("s", 2000, None, "overlap", 0, 3000, 3000)


def folded(*events: ScheduleEvent | Enqueued) -> Fold:
    fold = Fold()
    for offset, event in enumerate(events):
        fold.apply(offset, 1500, event)
    return fold


@pytest.mark.parametrize(
    "events",
    [
        [PAUSED],
        [ScheduleResumed("s", 2000, 2000, "ann", "")],
        [ScheduleRemoved("s", "ann", "")],
        [TICK_OF_2],
        [SET, ScheduleRemoved("s", "ann", ""), TICK_OF_2],
        [SET, PAUSED, PAUSED],
        [SET, ScheduleResumed("s", 2000, 2000, "ann", "")],
        [SET, PAUSED, TICK_OF_2],
        [SET, TICK_OF_2, TICK_OF_2],  # twice the same tick
        [SET, replace(TICK_OF_2, tick_ms=1999)],
        [SET, replace(TICK_OF_2, next_ms=2000)],
        [SET, replace(TICK_OF_2, job=JOB)],
        [SET, replace(TICK_OF_2, why="due")],
        [SET, replace(TICK_OF_2, why="due", job=JOB)],  # a job that there is not
        [ENQUEUED, SET, replace(TICK_OF_2, why="due", job=JOB)],  # one that it did not add
        [SET, ENQUEUED, Ticked("s", 1500, JOB, "asked", 0, 9000, 9000)],
        [SET, replace(TICK_OF_2, next_ms=0, due_ms=0), replace(TICK_OF_2, tick_ms=4000)],
        [replace(SET, name="")],
        [replace(SET, name="x" * 256)],
        [replace(SET, queue="a\0b")],
    ],
)
def test_what_no_writer_records_is_refused(events: list[Any]) -> None:
    with pytest.raises(LogCorrupt) as caught:
        folded(*events)
    assert caught.value.offset == len(events) - 1


def test_a_schedule_is_what_its_events_make_of_it() -> None:
    fold = folded(SET, ENQUEUED, replace(TICK_OF_2, job=JOB, why="due"), PAUSED, replace(SET, spec="every 5000"))
    later = replace(SET, spec="every 5000")
    assert fold.schedules["s"] == Schedule(later, 4, 1500, True, 2000, 2000, 2000, JOB, 1)
    fold.apply(5, 1500, ScheduleRemoved("s", "ann", ""))
    assert not fold.schedules


async def test_an_audit_of_what_came_since_goes_on_from_the_schedules_of_the_last_one() -> None:
    async with Rig() as rig:
        for name in ("a", "b", "c"):
            await rig.queue.schedules.set(name, timedelta(minutes=10), note, args={"text": name}, **WHO)
        report = await audit(MemoryReader(rig.disk), clock=rig.clock)
        assert report.clean
        start = AuditStart(report.verified.head, report.counters or {}, rig.clock.now_ms(), report.schedules)
        recorded = RecordedAudit(rig.clock.now_ms(), start.head.next_offset, 0, True, False, start)
        assert decode_recorded_audit(encode_recorded_audit(recorded)) == recorded
        await rig.queue.schedules.pause("a", **WHO)
        await rig.queue.schedules.remove("b", **WHO)
        await rig.advance(601)
        since = await audit_since(MemoryReader(rig.disk), recorded, clock=rig.clock)
        assert since.clean
        assert sorted(since.schedules) == ["a", "c"]
        key = next(key for key in rig.disk.rows if key.startswith(TICK))
        removed = rig.disk.rows.pop(key)
        found = await audit_since(MemoryReader(rig.disk), recorded, clock=rig.clock)
        assert [difference.range_name for difference in found.differences] == ["tick"]
        rig.disk.rows[key] = removed
        again = next(key for key in rig.disk.rows if key.startswith(SCHEDULE))
        rig.disk.rows[again], kept = b"x", rig.disk.rows[again]
        found = await audit_since(MemoryReader(rig.disk), recorded, clock=rig.clock)
        assert [(one.range_name, one.key) for one in found.differences] == [("schedule", "schedule 'a'")]
        rig.disk.rows[again] = kept


def test_a_recorded_audit_of_an_earlier_version_has_no_schedules() -> None:
    recorded = RecordedAudit(5, 0, 0, True, False, AuditStart(EMPTY_HEAD, {}, 5))
    fields = json.loads(encode_recorded_audit(recorded))
    del fields["start"]["schedules"]
    assert decode_recorded_audit(json.dumps(fields).encode()) == recorded
