"""Projections of the user's own: live, remembered, caught up, and left behind when they fail."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.projections import runner
from ledgerq.projections.fold import Transition
from ledgerq.projections.runner import ProjectionHost, Rows
from tests.support.loops import settle
from tests.support.rig import Rig


class Kinds:
    """Counts the events of each type; remembers what it was given."""

    def __init__(self, name: str = "kinds") -> None:
        self.name = name
        self.restored: list[dict[bytes, bytes]] = []
        self.seen: list[Transition] = []
        self.counts: dict[bytes, int] = {}

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Go on from these counts."""
        self.restored.append(dict(rows))
        self.counts = {key: int(value) for key, value in rows.items()}

    def apply(self, transition: Transition) -> Rows:
        """One more."""
        self.seen.append(transition)
        key = type(transition.event).__name__.encode()
        self.counts[key] = self.counts.get(key, 0) + 1
        return {key: b"%d" % self.counts[key]}


class Open:
    """The ids of the jobs that are not finished: rows come and go."""

    name = "open-jobs"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Nothing is kept in memory."""

    def apply(self, transition: Transition) -> Rows:
        """Set or remove the job's row."""
        job = transition.after or transition.before
        if job is None:
            return {}
        waits = transition.after is not None and transition.after.state in ("pending", "scheduled", "claimed")
        return {job.id: b"" if waits else None}


class Broken(Kinds):
    """Fails, in a way of the test's choice, at the first acked event it sees while `broken`."""

    def __init__(self, fail: Callable[[], Any], name: str = "broken") -> None:
        super().__init__(name)
        self.fail = fail
        self.broken = True

    def apply(self, transition: Transition) -> Rows:
        """Count, or fail."""
        if self.broken and type(transition.event).__name__ == "Acked":
            rows: Rows = self.fail()
            return rows
        return super().apply(transition)


def boom() -> Any:
    """Raise what a user's code may raise."""
    raise ZeroDivisionError("boom")


def rows_of(rig: Rig, name: str) -> dict[bytes, bytes]:
    """The durable rows of a projection."""
    prefix = keys.projection_rows_prefix(name)
    return {key.removeprefix(prefix): value for key, value in rig.disk.rows.items() if key.startswith(prefix)}


def offset_of(rig: Rig, name: str) -> int:
    """How far a projection has come, durably."""
    return int.from_bytes(rig.disk.rows[keys.projection_key(name)])


async def run_job(rig: Rig) -> str:
    """One job from beginning to end; returns its id."""
    job = await rig.queue.enqueue("q", b"")
    (claim,) = await rig.queue.claim("q")
    await rig.queue.ack(claim)
    return job.job_id


async def test_a_projection_follows_each_commit() -> None:
    kinds = Kinds()
    async with Rig(projections=[kinds, Open()]) as rig:
        assert rows_of(rig, "kinds") == {b"WriterOpened": b"1"}
        job = await rig.queue.enqueue("q", b"")
        assert rows_of(rig, "kinds") == {b"WriterOpened": b"1", b"Enqueued": b"1"}
        assert rows_of(rig, "open-jobs") == {job.id: b""}
        (claim,) = await rig.queue.claim("q")
        await rig.queue.ack(claim)
        assert rows_of(rig, "kinds") == {b"WriterOpened": b"1", b"Enqueued": b"1", b"Claimed": b"1", b"Acked": b"1"}
        assert rows_of(rig, "open-jobs") == {}
        assert offset_of(rig, "kinds") == offset_of(rig, "open-jobs") == rig.queue.log.durable_head.next_offset


async def test_a_projection_is_given_each_transition_with_the_job_before_and_after() -> None:
    kinds = Kinds()
    async with Rig(projections=[kinds]) as rig:
        await run_job(rig)
        await rig.queue.pause("q", actor="ann", reason="because")
        seen = [(t.offset, t.before and t.before.state, t.after and t.after.state) for t in kinds.seen]
        assert seen == [
            (0, None, None),
            (1, None, "pending"),
            (2, "pending", "claimed"),
            (3, "claimed", "done"),
            (4, None, None),
        ]
        assert {t.time_ms for t in kinds.seen} == {rig.clock.now_ms()}


async def test_a_projection_goes_on_from_its_rows_when_the_queue_opens_again() -> None:
    kinds = Kinds()
    async with Rig(projections=[kinds]) as rig:
        await run_job(rig)
        again = Kinds()
        await rig.reopen(projections=[again])
        names = (b"WriterOpened", b"Enqueued", b"Claimed", b"Acked", b"WriterClosed")
        assert again.restored == [dict.fromkeys(names, b"1")]
        assert [type(t.event).__name__ for t in again.seen] == ["WriterOpened"]
        await run_job(rig)
        assert rows_of(rig, "kinds")[b"Acked"] == b"2"


@pytest.mark.parametrize("flush_rows", [1, 5000])
async def test_a_new_projection_catches_up_at_open(flush_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_FLUSH_ROWS", flush_rows)
    async with Rig(projections=[Kinds("always")]) as rig:
        await run_job(rig)
        await rig.queue.enqueue("q", b"")
        late, open_jobs = Kinds("late"), Open()
        await rig.reopen(projections=[Kinds("always"), late, open_jobs])
        assert late.restored == [{}]
        assert [t.offset for t in late.seen] == list(range(7))
        assert rows_of(rig, "late") == rows_of(rig, "always")
        assert len(rows_of(rig, "open-jobs")) == 1
        assert offset_of(rig, "late") == offset_of(rig, "always") == 7


async def test_a_projection_that_was_left_out_for_a_while_catches_up_with_what_it_missed() -> None:
    async with Rig(projections=[Kinds("always"), Kinds("sometimes")]) as rig:
        await run_job(rig)
        await rig.reopen(projections=[Kinds("always")])
        await run_job(rig)
        back = Kinds("sometimes")
        await rig.reopen(projections=[Kinds("always"), back])
        assert [t.offset for t in back.seen] == list(range(5, 11))
        assert rows_of(rig, "sometimes") == rows_of(rig, "always")


async def test_a_crash_takes_rows_and_events_together() -> None:
    async with Rig(projections=[Kinds()]) as rig:
        await run_job(rig)
        rig.faults.hold("sync:before")
        lost = asyncio.create_task(rig.queue.enqueue("q", b""))
        await settle()
        lost.cancel()
        rig.faults.let_go("sync:before")
        await rig.crash(projections=[Kinds()])
        assert rows_of(rig, "kinds") == {b"WriterOpened": b"2", b"Enqueued": b"1", b"Claimed": b"1", b"Acked": b"1"}


BAD_ROWS: dict[str, Callable[[], Any]] = {
    "raises": boom,
    "returns nothing": lambda: None,
    "a key that is text": lambda: {"key": b""},
    "a value that is text": lambda: {b"key": "value"},
    "a value that is a number": lambda: {b"key": 5},
    "a key too long for any store": lambda: {b"k" * 65_536: b""},
}


@pytest.mark.parametrize("fail", BAD_ROWS.values(), ids=BAD_ROWS.keys())
async def test_a_projection_that_fails_is_left_behind_and_the_queue_goes_on(
    fail: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    broken, kinds = Broken(fail), Kinds()
    async with Rig(projections=[broken, kinds]) as rig:
        await run_job(rig)
        await run_job(rig)
        assert rig.queue.failure is None
        assert rows_of(rig, "kinds")[b"Acked"] == b"2"
        # What it made of the commit that it failed in is not written either.
        assert rows_of(rig, "broken") == {b"WriterOpened": b"1", b"Enqueued": b"1", b"Claimed": b"1"}
        assert offset_of(rig, "broken") == 3
        assert len([t for t in broken.seen if t.offset > 3]) == 0
        (report,) = [record.getMessage() for record in caplog.records]
        assert report == (
            "projection 'broken' failed and stays at offset 3; mend it and run: rebuild-projections --only broken"
        )
        broken.broken = False
        await rig.reopen(projections=[broken, kinds])
        assert rows_of(rig, "broken") == rows_of(rig, "kinds")
        assert offset_of(rig, "broken") == offset_of(rig, "kinds")


async def test_rows_of_a_failed_commit_are_dropped_together() -> None:
    broken = Broken(boom)
    async with Rig(projections=[broken]) as rig:
        await rig.queue.enqueue_many("q", [b""] * 3)
        claims = await rig.queue.claim("q", limit=3)
        before = rows_of(rig, "broken")
        await rig.queue.ack_many(claims)
        assert rows_of(rig, "broken") == before


async def test_a_projection_that_fails_while_catching_up_does_not_keep_the_queue_closed() -> None:
    async with Rig() as rig:
        await run_job(rig)
        broken, kinds = Broken(boom), Kinds()
        await rig.reopen(projections=[broken, kinds])
        assert offset_of(rig, "broken") == 3
        assert rows_of(rig, "broken") == {b"WriterOpened": b"1", b"Enqueued": b"1", b"Claimed": b"1"}
        await run_job(rig)
        assert rows_of(rig, "kinds")[b"Acked"] == b"2"


class Unrestorable(Kinds):
    """Can't make sense of rows."""

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Fail when there are any."""
        if rows:
            raise ValueError("rows of an older release")


async def test_a_projection_that_cannot_be_restored_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async with Rig(projections=[Unrestorable()]) as rig:
        await run_job(rig)
        await rig.reopen()
        await run_job(rig)
        assert rows_of(rig, "kinds")[b"Acked"] == b"1"
        assert "projection 'kinds' failed and stays at offset 5" in caplog.text


# Names


@pytest.mark.parametrize("name", ["a", "0", "a" * 63, "mail-by-day", "a_b", "9-_"])
def test_a_name_is_1_to_63_small_characters(name: str) -> None:
    assert list(ProjectionHost([Kinds(name)]).projections) == [name]


@pytest.mark.parametrize(
    "name", ["", "a" * 64, "A", "a b", "a.b", "-a", "_a", "é", "a\0", "a\n", "jobs", "stats", None]
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="projection name"):
        ProjectionHost([Kinds(name)])


def test_a_name_is_used_once() -> None:
    with pytest.raises(InvalidArgument, match="each name once"):
        ProjectionHost([Kinds("a"), Kinds("b"), Kinds("a")])


async def test_a_queue_with_a_bad_name_is_not_opened() -> None:
    rig = Rig(projections=[Kinds("No")])
    with pytest.raises(InvalidArgument):
        await rig.open()
    assert rig.faults.calls == ["close"]


async def test_projections_whose_names_begin_alike_keep_their_rows_apart() -> None:
    async with Rig(projections=[Kinds("a"), Kinds("ab"), Kinds("a-b")]) as rig:
        await run_job(rig)
        one, other = Kinds("a"), Kinds("ab")
        await rig.reopen(projections=[one, other])
        assert one.restored == other.restored
        assert len(one.restored[0]) == 5
