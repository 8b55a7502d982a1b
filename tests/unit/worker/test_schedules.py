"""Schedules: exactly one job a tick, at both edges of summer time, over restarts and crashes, and what policies do."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from ledgerq.eventlog.errors import InvalidArgument, InvalidState, ScheduleNotFound
from ledgerq.eventlog.events import Enqueued, SchedulePaused, ScheduleRemoved, ScheduleSet, Ticked
from ledgerq.eventlog.keys import TEXT_PREFIX
from ledgerq.projections.index_keys import SCHEDULE, TICK
from ledgerq.worker.engine import timetable
from ledgerq.worker.tasks.memory_queue import memory_queue
from ledgerq.worker.tasks.registry import Tasks
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all

BERLIN = ZoneInfo("Europe/Berlin")
app = Tasks("plain")


@app.task(queue="q")
def export(tenant: str = "all") -> None: ...


@app.task(queue="q")
def report(tick: datetime, tenant: str = "all") -> None: ...


def at(rig: Rig, moment: datetime) -> None:
    """Let the clock be at this time before the queue knows of anything."""
    rig.clock.set(round(moment.timestamp() * 1000))


async def go_to(rig: Rig, moment: datetime) -> None:
    """Let time pass up to this moment, a minute at a time, as it does for a process that runs."""
    end_ms = round(moment.timestamp() * 1000)
    while rig.clock.now_ms() < end_ms:
        due_ms = rig.clock.next_due_ms()
        rig.clock.set(min(end_ms, max(due_ms or end_ms, rig.clock.now_ms() + 60_000)))
        await settle()


async def ticks(rig: Rig) -> list[Ticked]:
    await rig.queue.log.committed()
    return [event for event in await rig.events() if isinstance(event, Ticked)]


def times(found: list[Ticked], zone: ZoneInfo = BERLIN) -> list[str]:
    return [datetime.fromtimestamp(tick.tick_ms / 1000, zone).isoformat() for tick in found]


async def finish_all(rig: Rig) -> list[Any]:
    """Work off what is pending; the arguments of the jobs."""
    claims = await claim_all(rig.queue)
    for claim in claims:
        await rig.queue.ack(claim)
    return [json.loads(claim.payload) for claim in claims]


async def test_each_tick_adds_one_job_in_the_commit_of_its_event() -> None:
    async with Rig() as rig:
        at(rig, datetime(2026, 6, 1, 1, tzinfo=BERLIN))
        set_now = await rig.queue.schedules.set("nightly", "30 2 * * *", export, args={"tenant": "acme"}, **WHO)
        assert (set_now.name, set_now.next_at) == ("nightly", datetime(2026, 6, 1, 2, 30, tzinfo=UTC))
        await go_to(rig, datetime(2026, 6, 3, 12, tzinfo=UTC))
        found = await ticks(rig)
        assert times(found, ZoneInfo("UTC")) == [f"2026-06-0{day}T02:30:00+00:00" for day in (1, 2, 3)][: len(found)]
        assert [tick.why for tick in found] == ["due", "overlap", "overlap"]
        for batch in await rig.batches():
            jobs = [event.id for event in batch.events if isinstance(event, Enqueued)]
            assert jobs == [event.job for event in batch.events if isinstance(event, Ticked) and event.job]
        assert await finish_all(rig) == [{"tenant": "acme"}]
        schedule = await rig.queue.schedules.get("nightly")
        assert (schedule.jobs, schedule.tick_ms, schedule.last_job) == (1, found[-1].tick_ms, found[0].job)


@pytest.mark.parametrize(
    ("day", "spec", "expected"),
    [
        ("2026-03-29", "30 2 * * *", ["03:00:00+02:00"]),
        ("2026-03-29", "0 3 * * *", ["03:00:00+02:00"]),
        ("2026-03-29", "*/30 1-3 * * *", ["01:00:00+01:00", "01:30:00+01:00", "03:00:00+02:00", "03:30:00+02:00"]),
        ("2026-10-25", "30 2 * * *", ["02:30:00+02:00"]),
        ("2026-10-25", "0 2,3 * * *", ["02:00:00+02:00", "03:00:00+01:00"]),
        (
            "2026-10-25",
            "*/30 2 * * *",
            ["02:00:00+02:00", "02:30:00+02:00", "02:00:00+01:00", "02:30:00+01:00"],
        ),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
async def test_both_edges_of_summer_time(day: str, spec: str, expected: list[str], restarts: bool) -> None:
    start = datetime.fromisoformat(day).replace(tzinfo=BERLIN)
    async with Rig() as rig:
        at(rig, start - timedelta(minutes=1))
        await rig.queue.schedules.set("edge", spec, report, zone="Europe/Berlin", overlap="queue", **WHO)
        for quarter in range(1, 4 * 5):
            await go_to(rig, datetime.fromtimestamp(start.timestamp() + 900 * quarter + 1, UTC))
            if restarts:
                await rig.crash() if quarter % 2 else await rig.reopen()
                await settle()
        found = await ticks(rig)
        assert times(found) == [f"{day}T{time}" for time in expected]
        # A task that takes `tick` gets it, in the schedule's zone.
        assert await finish_all(rig) == [{"tick": f"{day}T{time}"} for time in expected]


async def test_a_schedule_ticks_on_after_a_restart_and_is_no_job_the_more() -> None:
    async with Rig() as rig:
        await rig.queue.schedules.set("s", timedelta(minutes=10), export, overlap="queue", **WHO)
        first_ms = rig.clock.now_ms() + 600_000
        for _ in range(4):
            await rig.advance(299)
            await rig.crash()
            await settle()
        await rig.advance(4 + 1)
        await rig.reopen()
        await settle()
        assert [(tick.tick_ms, tick.missed) for tick in await ticks(rig)] == [
            (first_ms, 0),
            (first_ms + 600_000, 0),
        ]


async def test_a_crash_between_staging_and_the_commit_loses_neither_tick_nor_job() -> None:
    async with Rig() as rig:
        await rig.queue.schedules.set("s", timedelta(minutes=10), export, **WHO)
        rig.faults.hold("sync:before")
        rig.clock.advance(seconds=601)
        await settle()
        assert rig.queue._core.writer_state.schedules.by_name["s"].jobs == 1, "it is staged"
        assert not [event for event in await rig.events() if isinstance(event, Ticked)]
        rig.faults.held.clear()
        await rig.crash()
        await settle()
        (tick,) = await ticks(rig)
        jobs = [event.id for event in await rig.events() if isinstance(event, Enqueued)]
        assert jobs == [tick.job]


async def test_another_writer_that_takes_over_goes_on_with_the_ticks() -> None:
    async with Rig() as rig:
        await rig.queue.schedules.set("s", timedelta(minutes=10), export, overlap="queue", **WHO)
        await rig.advance(601)
        old = rig.queue
        await rig.open()  # the older writer is fenced
        await rig.advance(600)
        found = await ticks(rig)
        assert len(found) == len({tick.tick_ms for tick in found}) == 2
        assert [type(event) for event in await rig.events()].count(Enqueued) == 2
        await old.close()


@pytest.mark.parametrize(
    ("missed", "overlap", "grace", "expected"),
    [
        ("last", "skip", 60, [(5, "due", 4)]),
        ("all", "queue", 60, [(1, "due", 0), (2, "due", 0), (3, "due", 0), (4, "due", 0), (5, "due", 0)]),
        ("skip", "skip", 60, [(5, "missed", 4)]),
        ("skip", "skip", 400, [(5, "due", 4)]),
    ],
)
async def test_ticks_at_which_no_process_was_there(
    missed: Any, overlap: Any, grace: float, expected: list[tuple[int, str, int]]
) -> None:
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        ten = timedelta(minutes=10)
        await rig.queue.schedules.set("s", ten, export, missed=missed, overlap=overlap, grace=grace, **WHO)
        await rig.queue.close()
        rig.clock.advance(seconds=5 * 600 + 300)
        await rig.open()
        await settle()
        found = await ticks(rig)
        assert [((tick.tick_ms - start_ms) // 600_000, tick.why, tick.missed) for tick in found] == expected
        assert found[-1].next_ms == start_ms + 6 * 600_000
        assert len(await finish_all(rig)) == sum(why == "due" for _, why, _ in expected)
        await rig.advance(301)
        assert [tick.why for tick in await ticks(rig)][len(expected) :] == ["due"]


async def test_of_thousands_of_missed_ticks_the_last_thousand_have_jobs() -> None:
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        await rig.queue.schedules.set("s", "* * * * *", export, missed="all", overlap="queue", **WHO)
        await rig.queue.schedules.set("t", timedelta(minutes=1), export, **WHO)
        await rig.queue.close()
        rig.clock.advance(seconds=60 * 1500)
        await rig.open()
        for _ in range(200):
            await settle()
        found = await ticks(rig)
        some = [tick for tick in found if tick.name == "s"]
        assert len(some) == timetable.MAX_MISSED
        assert (some[0].missed, {tick.missed for tick in some[1:]}) == (1000, {0})
        assert [b.tick_ms - a.tick_ms for a, b in pairwise(some)] == [60_000] * 999
        assert some[-1].tick_ms == (start_ms + 60_000 * 1500) // 60_000 * 60_000
        (one,) = [tick for tick in found if tick.name == "t"]
        assert (one.missed, one.tick_ms) == (1000, start_ms + 60_000 * 1500)


async def test_a_tick_replaces_the_job_that_still_waits_and_no_other() -> None:
    async with Rig() as rig:
        await rig.queue.schedules.set("s", timedelta(minutes=1), export, overlap="replace", **WHO)
        await rig.advance(61)
        await rig.advance(60)
        first, second = [tick.job for tick in await ticks(rig)]
        page = await rig.queue.jobs("q")
        assert {job.id: job.state for job in page.jobs} == {first: "cancelled", second: "pending"}
        (claim,) = await rig.queue.claim("q", lease=3600)
        await rig.advance(60)
        assert [job.state for job in (await rig.queue.jobs("q")).jobs].count("pending") == 1
        await rig.queue.ack(claim)


async def test_jitter_delays_a_tick_by_what_stands_in_the_log() -> None:
    async with Rig() as rig:
        start_ms = rig.clock.now_ms()
        await rig.queue.schedules.set("s", timedelta(minutes=10), export, overlap="queue", jitter=60, **WHO)
        drawn = []
        for _ in range(8):
            schedule = await rig.queue.schedules.get("s")
            drawn.append(schedule.due_ms - schedule.next_ms)
            rig.clock.set(schedule.due_ms - 1)
            await settle()
            before = len(await ticks(rig))
            await rig.advance(0.001)
            assert len(await ticks(rig)) == before + 1
        assert all(0 <= delay < 60_000 for delay in drawn)
        assert len(set(drawn)) > 4
        assert [tick.tick_ms for tick in await ticks(rig)] == [start_ms + 600_000 * n for n in range(1, 9)]


async def test_a_paused_schedule_has_no_ticks_and_stays_paused() -> None:
    async with Rig() as rig:
        schedules = rig.queue.schedules
        await schedules.set("s", timedelta(minutes=10), export, **WHO)
        assert (await schedules.pause("s", **WHO)).paused
        await schedules.pause("s", **WHO)
        assert await schedules.next("s") == []
        await schedules.set("s", timedelta(minutes=5), export, **WHO)
        await rig.advance(3600)
        await rig.reopen()
        await rig.advance(3600)
        schedules = rig.queue.schedules
        assert (await schedules.get("s")).paused
        assert await ticks(rig) == []
        assert not [key for key in rig.disk.rows if key.startswith(TICK)]
        await schedules.run_now("s", **WHO)
        resumed = await schedules.resume("s", **WHO)
        assert resumed.next_ms == rig.clock.now_ms() + 300_000
        await finish_all(rig)
        await rig.advance(301)
        assert [tick.why for tick in await ticks(rig)] == ["asked", "due"]
        assert sum(isinstance(event, SchedulePaused) for event in await rig.events()) == 1


async def test_a_job_that_an_operator_asks_for_leaves_the_next_tick_as_it_is() -> None:
    async with Rig() as rig:
        before = await rig.queue.schedules.set("s", "0 9 * * 1-5", report, args={"tenant": "acme"}, **WHO)
        job_id = await rig.queue.schedules.run_now("s", **WHO)
        after = await rig.queue.schedules.get("s")
        assert (after.next_ms, after.due_ms, after.jobs) == (before.next_ms, before.due_ms, 1)
        (tick,) = await ticks(rig)
        assert (tick.why, tick.actor, tick.reason) == ("asked", WHO["actor"], WHO["reason"])
        (claim,) = await rig.queue.claim("q")
        assert claim.job_id == job_id
        assert json.loads(claim.payload) == {
            "tenant": "acme",
            "tick": timetable.moment(tick.tick_ms, "UTC").isoformat(),
        }


async def test_a_schedule_that_is_set_anew_or_removed_leaves_no_row_and_no_arguments() -> None:
    async with Rig() as rig:
        schedules = rig.queue.schedules
        for tenant in ("secret-one", "secret-two"):
            await schedules.set("s", timedelta(minutes=10), export, args={"tenant": tenant}, **WHO)
        texts = b"".join(value for key, value in rig.disk.rows.items() if key.startswith(TEXT_PREFIX))
        assert b"secret-two" in texts
        assert b"secret-one" not in texts
        assert [schedule.name for schedule in await schedules.list()] == ["s"]
        await schedules.remove("s", **WHO)
        assert not [key for key in rig.disk.rows if key.startswith((SCHEDULE, TICK))]
        assert b"secret" not in b"".join(rig.disk.rows.values())
        await rig.advance(3600)
        assert await ticks(rig) == []
        for call in (schedules.get, schedules.next):
            with pytest.raises(ScheduleNotFound):
                await call("s")
        for change in (schedules.pause, schedules.resume, schedules.remove, schedules.run_now):
            with pytest.raises(ScheduleNotFound):
                await change("s", **WHO)


async def test_schedules_changed_within_one_commit_are_what_the_last_change_says() -> None:
    async with Rig() as rig:
        schedules = rig.queue.schedules
        await asyncio.gather(
            schedules.set("s", timedelta(minutes=10), export, args={"tenant": "a"}, **WHO),
            schedules.set("s", timedelta(minutes=20), export, args={"tenant": "b"}, **WHO),
            schedules.pause("s", **WHO),
            schedules.set("t", timedelta(minutes=10), export, **WHO),
            schedules.remove("t", **WHO),
        )
        (schedule,) = await schedules.list()
        assert (schedule.setting.spec, schedule.paused) == ("every 1200000", True)


async def test_the_next_ticks_are_told() -> None:
    async with Rig() as rig:
        at(rig, datetime(2026, 10, 24, 12, tzinfo=BERLIN))
        await rig.queue.schedules.set("s", "30 2 * * *", export, zone="Europe/Berlin", **WHO)
        found = await rig.queue.schedules.next("s", n=3)
        assert [moment.isoformat() for moment in found] == [
            "2026-10-25T02:30:00+02:00",
            "2026-10-26T02:30:00+01:00",
            "2026-10-27T02:30:00+01:00",
        ]


@pytest.mark.parametrize(
    "given",
    [
        {"when": "30 2 * *"},
        {"when": "61 2 * * *"},
        {"when": "0 0 30 2 *"},
        {"when": "* * * * * *"},
        {"when": timedelta(milliseconds=10)},
        {"when": 5},
        {"zone": "Europe/Nowhere"},
        {"zone": "../etc"},
        {"missed": "some"},
        {"overlap": "some"},
        {"missed": "all", "overlap": "skip"},
        {"jitter": -1},
        {"jitter": 90_000},
        {"args": {"tenant": 5}},
        {"args": {"other": 5}},
        {"args": {"tenant": "x" * 70_000}},
        {"name": ""},
        {"name": "a\0b"},
        {"task": export.options(delay=5)},
    ],
)
async def test_what_can_be_no_schedule_is_refused(given: dict[str, Any]) -> None:
    async with Rig() as rig:
        end = rig.queue.log.next_offset
        arguments: dict[str, Any] = {"name": "s", "when": "30 2 * * *", "task": export} | WHO | given
        with pytest.raises(InvalidArgument):
            await rig.queue.schedules.set(**arguments)
        assert rig.queue.log.next_offset == end


def with_schedules(**of_report: Any) -> Tasks:
    tasks = Tasks("nightly")

    @tasks.task(queue="q", max_attempts=7)
    def mail() -> None: ...

    @tasks.task(queue="q")
    def report(tick: datetime) -> None: ...

    tasks.cron("0 9 * * 1-5", name="mail", zone="Europe/Berlin")(mail)
    if of_report:
        tasks.cron(every=timedelta(minutes=10), **of_report)(report)
    return tasks


async def test_schedules_in_code_are_set_once_changed_with_it_and_removed_with_it() -> None:
    async with Rig(tasks=with_schedules(jitter=5)) as rig:
        assert [schedule.name for schedule in await rig.queue.schedules.list()] == ["mail", "report"]
        assert (await rig.queue.schedules.get("mail")).setting.max_attempts == 7
        end = rig.queue.log.next_offset
        await rig.reopen(tasks=with_schedules(jitter=5))
        assert rig.queue.log.next_offset == end + 2, "closed and opened, and nothing else"
        await rig.queue.schedules.pause("report", **WHO)
        await rig.reopen(tasks=with_schedules(jitter=9))
        changed = await rig.queue.schedules.get("report")
        assert (changed.setting.jitter_ms, changed.paused) == (9000, True)
        await rig.queue.schedules.set("own", timedelta(hours=1), export, **WHO)
        await rig.reopen(tasks=with_schedules())
        assert [schedule.name for schedule in await rig.queue.schedules.list()] == ["mail", "own"]
        await rig.reopen(tasks=Tasks("others"))
        assert [schedule.name for schedule in await rig.queue.schedules.list()] == ["mail", "own"]
        sets = [event for event in await rig.events() if isinstance(event, ScheduleSet | ScheduleRemoved)]
        assert [(type(event).__name__, event.name) for event in sets] == [
            ("ScheduleSet", "mail"),
            ("ScheduleSet", "report"),
            ("ScheduleSet", "report"),
            ("ScheduleSet", "own"),
            ("ScheduleRemoved", "report"),
        ]


async def test_a_schedule_that_is_out_of_the_code_does_not_tick_once_more() -> None:
    async with Rig(tasks=with_schedules(jitter=0)) as rig:
        await rig.queue.close()
        rig.clock.advance(seconds=3600)
        await rig.open(tasks=with_schedules())
        await settle()
        assert await ticks(rig) == []


async def test_a_schedule_in_code_is_not_changed_elsewhere_and_its_name_is_its_own() -> None:
    async with Rig(tasks=with_schedules(jitter=5)) as rig:
        schedules = rig.queue.schedules
        with pytest.raises(InvalidState, match="in the code of the tasks 'nightly'"):
            await schedules.remove("mail", **WHO)
        with pytest.raises(InvalidState, match="in the code of the tasks 'nightly'"):
            await schedules.set("mail", timedelta(hours=1), export, **WHO)
        await rig.queue.close()
        await rig.open(tasks=None)
        await rig.queue.schedules.set("own", timedelta(hours=1), export, **WHO)
        await rig.queue.close()
        tasks = with_schedules(name="own")
        with pytest.raises(InvalidArgument, match="set by an operator"):
            await rig.open(tasks=tasks)
        await rig.open(tasks=None)


async def test_a_schedule_whose_arguments_are_lost_ticks_without_jobs_until_it_is_set_anew(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Rig(tasks=with_schedules(jitter=0)) as rig:
        await rig.queue.schedules.set("own", timedelta(minutes=7), export, **WHO)
        await rig.queue.close()
        lost = {key: value for key, value in rig.disk.rows.items() if key.startswith(TEXT_PREFIX)}
        for key in lost:
            del rig.disk.rows[key]
        await rig.open()
        await rig.advance(601)
        assert {tick.name: tick.why for tick in await ticks(rig)} == {"own": "lost", "report": "due"}
        assert "ticked and added no job" in caplog.text
        with pytest.raises(InvalidState, match="set it anew"):
            await rig.queue.schedules.run_now("own", **WHO)
        await rig.queue.schedules.set("own", timedelta(minutes=7), export, **WHO)
        await rig.advance(421)
        assert [tick.why for tick in await ticks(rig) if tick.name == "own"] == ["lost", "due"]


async def test_a_schedule_whose_zone_is_not_known_here_keeps_no_other_waiting(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with Rig() as rig:
        at(rig, datetime(2026, 6, 1, 1, tzinfo=UTC))
        await rig.queue.schedules.set("a", "*/10 * * * *", export, zone="Europe/Berlin", overlap="queue", **WHO)
        await rig.queue.schedules.set("b", timedelta(minutes=10), export, overlap="queue", **WHO)
        await rig.queue.close()
        real = timetable._zone

        def unknown(zone: str) -> ZoneInfo:
            return real("Europe/Nowhere" if zone == "Europe/Berlin" else zone)

        with monkeypatch.context() as patch:
            patch.setattr(timetable, "_zone", unknown)
            await rig.open()
            for _ in range(3):
                await rig.advance(600)
            assert [tick.name for tick in await ticks(rig)] == ["b", "b", "b"]
            assert rig.queue._core.maintenance.failures == 0
            assert "does not tick here: there is no time zone" in caplog.text
        await rig.reopen()
        await rig.advance(0.001)
        assert [(tick.name, tick.missed) for tick in await ticks(rig)][3:] == [("a", 2)]


async def test_drain_runs_the_ticks_up_to_a_time() -> None:
    tasks, seen = Tasks(), list[datetime]()

    @tasks.cron(every=timedelta(minutes=10))
    @tasks.task(queue="q")
    def report(tick: datetime) -> None:
        seen.append(tick)

    async with memory_queue(tasks) as queue:
        begin = datetime.fromtimestamp(queue.clock.now_ms() / 1000, UTC)
        await queue.drain()
        assert seen == []
        await queue.drain(now=begin + timedelta(minutes=35))
        assert seen == [begin + timedelta(minutes=minutes) for minutes in (10, 20, 30)]


async def test_without_schedules_no_range_is_read_and_no_row_is_there() -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"x", delay=60)
        await rig.advance(61)
        assert rig.queue._core.maintenance._ticks.next_ms > 2**61
        assert not [key for key in rig.disk.rows if key.startswith((SCHEDULE, TICK))]


async def test_ticks_need_the_task_above_which_they_are_written() -> None:
    tasks = Tasks()
    with pytest.raises(InvalidArgument, match="above"):
        tasks.cron("* * * * *")(export.function)  # type: ignore[type-var]
    for wrong in ({}, {"every": timedelta(hours=1), "spec": "* * * * *"}):
        with pytest.raises(InvalidArgument, match="a schedule is"):
            tasks.cron(*([wrong["spec"]] if "spec" in wrong else []), every=wrong.get("every"))  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["30 2 * * *", "*/7 * * * *", "15 2,3 * * *", "0 9 1,15 * 1-5", "every 420000"])
async def test_ticks_backwards_are_those_forwards(spec: str) -> None:
    for day in ("2026-03-27", "2026-10-23"):
        start = datetime.fromisoformat(day).replace(tzinfo=BERLIN).timestamp() * 1000
        first_ms = timetable.next_tick(spec, "Europe/Berlin", int(start))
        forwards, tick_ms, end_ms = list[int](), first_ms, first_ms + 4 * 86_400_000
        while tick_ms <= end_ms:
            forwards.append(tick_ms)
            tick_ms = timetable.next_tick(spec, "Europe/Berlin", tick_ms)
        found, are_more = await timetable.due_ticks(spec, "Europe/Berlin", first_ms, end_ms)
        assert (found, are_more) == (forwards[-1000:], len(forwards) > 1000)
