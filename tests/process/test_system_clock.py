"""The system's clock set forward by days, back again, or never set at all, for processes with stores on files.

Whatever it does, nothing is lost and nothing that was acked comes back; what can't go on says which two times are in
the way; and what can go on does.
"""

import asyncio
import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.errors import ClockWentBack
from ledgerq.eventlog.events import Acked, Claimed, LeaseExpired, Record
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from ledgerq.worker.claims import Claim
from ledgerq.worker.queue import Queue
from tests.process.clock_faked import Answers, FakedClock, Refused, needs_faketime
from tests.process.kills import Ledger
from tests.support.ledger_checks import check_ledger

pytestmark = needs_faketime

DAY_MS = 24 * 3600 * 1000
HOUR_S = 3600
POLL_S = 0.02
LIMIT_S = 100.0
# No wait may last as long as the clock was wrong, days: any of them is over within seconds on a machine that is idle.
SOON_S = 60.0


@pytest.fixture
def url(tmp_path: Path) -> str:
    return (tmp_path / "store").as_uri()


@pytest.fixture
def clock(tmp_path: Path) -> FakedClock:
    return FakedClock(tmp_path)


async def checked(url: str) -> list[Record]:
    """The records of a closed store, whose ledger is clean; no claim was settled twice, and no acked job came back."""
    store = await open_reader(url, pinned=True)
    try:
        await check_ledger(store)
        records = [record async for record in LogReader(store, clock=SystemClock()).read()]
    finally:
        await store.close()
    ledger = Ledger()
    for record in records:
        ledger.add(record)
    times = [record.time_ms for record in records]
    assert times == sorted(times)
    return records


async def claimed_soon(child: Answers, *wanted: str) -> float:
    """The seconds until all of these could be claimed, and nothing else."""
    claimed: list[str] = []
    began_s = time.monotonic()
    async with asyncio.timeout(LIMIT_S):
        while len(claimed) < len(wanted):
            claimed += await child.claim(1)
    assert sorted(claimed) == sorted(wanted)
    return time.monotonic() - began_s


def kinds(records: list[Record], job_id: str) -> list[str]:
    """What happened to a job."""
    return [
        type(record.event).__name__ for record in records if getattr(record.event, "id", b"") == job_id_bytes(job_id)
    ]


@pytest.mark.proof
async def test_set_forward_by_three_days_and_back_while_a_queue_is_open(url: str, clock: FakedClock) -> None:
    async with clock.child(url) as child:
        assert abs(await child.now() - SystemClock().now_ms()) < 60_000
        await child.open()
        ids = {name: await child.enqueue(name) for name in ("done", "held")}
        ids["late"] = await child.enqueue("late", HOUR_S)
        ids["too late"] = await child.enqueue("too late", 7 * 24 * HOUR_S)
        assert await child.claim(0, 1.0) == ["done", "held"]
        await child.ack("done")
        clock.set("+3d")
        assert await child.now() > SystemClock().now_ms() + 2 * DAY_MS
        # The lease ends, the late job is due, and the done one is kept no longer; the other is not due yet.
        assert await claimed_soon(child, "held", "late") < SOON_S
        with pytest.raises(Refused, match="JobNotFound"):
            await child.state(ids["done"])
        assert await child.state(ids["too late"]) == "scheduled"
        await child.ack("held")
        await child.ack("late")
        ids["delayed ahead"] = await child.enqueue("delayed ahead", 60)
        ids["ahead"] = await child.enqueue("ahead")
        assert await child.claim(0, 2.0) == ["ahead"]
        clock.set("+0")
        # All goes on at once; waits and leases are as long as ever, also that of the claim made before.
        ids["after"] = await child.enqueue("after")
        assert await claimed_soon(child, "after", "ahead") < SOON_S
        await child.ack("after")
        await child.ack("ahead")
        began_s = time.monotonic()
        assert await child.claim(0.2) == []
        assert time.monotonic() - began_s < SOON_S
        await child.close()
    records = await checked(url)
    assert kinds(records, ids["done"]) == ["Enqueued", "Claimed", "Acked", "Swept"]
    for name in ("held", "ahead"):
        assert kinds(records, ids[name]) == ["Enqueued", "Claimed", "LeaseExpired", "Claimed", "Acked"]
    assert kinds(records, ids["late"]) == ["Enqueued", "Promoted", "Claimed", "Acked"]
    assert kinds(records, ids["after"]) == ["Enqueued", "Claimed", "Acked"]
    # SlateDB goes by the time at which it was opened and the clock that can't be set, so it opens under the right time.
    async with Queue.open(url) as queue:
        assert (await queue.get(ids["delayed ahead"])).state == "scheduled"  # until the time that it was given
        assert (await queue.get(ids["too late"])).state == "scheduled"
        assert (await queue.stats("q")).done == 4


@pytest.mark.proof
async def test_a_worker_keeps_its_jobs_when_the_clock_is_set_back(url: str, clock: FakedClock) -> None:
    clock.set("+3d")
    async with clock.child(url, lease_s=1.0) as child:
        await child.open()
        await child.enqueue("before")
        await child.work()
        async with asyncio.timeout(LIMIT_S):
            while await child.started() != ["before"]:
                await asyncio.sleep(POLL_S)
        clock.set("+0")
        await child.enqueue("after")
        # Three leases long, both are running, and nobody gets them a second time.
        assert await child.claim(3) == []
        assert await child.started() == ["before", "after"]
        await child.finish()
        assert (await child.totals())["lease_expired"] == 0
        await child.close()
    records = await checked(url)
    happened = Counter(type(record.event) for record in records)
    assert (happened[Claimed], happened[Acked], happened[LeaseExpired]) == (2, 2, 0)


@pytest.mark.proof
async def test_a_store_written_under_a_clock_that_was_ahead(url: str, tmp_path: Path, clock: FakedClock) -> None:
    clock.set("+3d")
    async with clock.child(url) as child:
        await child.open()
        ids = {name: await child.enqueue(name) for name in ("done", "pending", "claimed")}
        assert await child.claim(0) == ["done", "pending", "claimed"]
        await child.ack("done")
        await child.close()
    before = await checked(url)

    # Under the right time it is refused, with both times and the ways out, and nothing happens to it. SlateDB waits for
    # ten seconds first, so both ways to open it are tried at once.
    clock.set("+0")
    twin = shutil.copytree(tmp_path / "store", tmp_path / "twin")
    saying = asyncio.create_task(clock.command("ledgerq", "enqueue", "--take-over", twin, "q", "x"))
    with pytest.raises(
        ClockWentBack, match=r"the clock shows .* UTC, but the store was last written at .* UTC"
    ) as caught:
        await Queue.open(url)
    gap_ms = caught.value.last_ms - caught.value.now_ms
    assert abs(gap_ms - 3 * DAY_MS) < 120_000
    assert "2 days, 23:59:" in str(caught.value)
    assert "--into NEW" in str(caught.value)
    said = await saying
    assert said.code == 3
    assert "but the store was last written at" in said.message
    assert await checked(url) == before

    # Reading needs no clock, and the doctor names it.
    audit = await clock.command("ledgerq", "audit", url, "--deep", "--json")
    assert (audit.code, audit.json["differences"]) == (0, [])
    doctor = await clock.command("ledgerq", "doctor", url, "--json")
    (check,) = [check for check in doctor.json["checks"] if check["name"] == "ledgerq store"]
    assert check["status"] == "warn"
    assert "after this machine's clock" in check["measured"]

    # The copy works, and holds all.
    copy = (tmp_path / "copy").as_uri()
    copied = await clock.command("rebuild-projections", url, "--into", copy, "--reason", "the clock was wrong")
    assert copied.code == 0, copied.err
    async with Queue.open(copy) as queue:
        assert (await queue.get(ids["done"])).state == "done"
        claims = await queue.claim("q", limit=10)
        assert [claim.payload for claim in claims] == [b"pending", b"claimed"]
        await queue.ack_many(claims)
    await checked(copy)

    # And so does the store itself once the clock has caught up.
    clock.set("+3d")
    async with clock.child(url) as child:
        assert await child.open() > 1
        assert await child.claim(0) == ["pending", "claimed"]
        await child.close()
    assert (await checked(url))[: len(before)] == before


@pytest.mark.proof
@pytest.mark.parametrize("when", ["1970-01-01 00:00:10", "1980-01-01 00:00:00", "2005-06-01 00:00:00"])
async def test_a_store_made_under_a_clock_that_was_never_set(url: str, clock: FakedClock, when: str) -> None:
    clock.set(f"@{when}")
    async with clock.child(url) as child:
        await child.open()
        assert f"the system's clock shows {when[:15]}" in child.says()
        ids = {name: await child.enqueue(name) for name in ("done", "held", "pending")}
        ids["late"] = await child.enqueue("late", HOUR_S)
        assert (await child.claim(0))[:2] == ["done", "held"]
        await child.ack("done")
        # It is set while the queue is open: what was to be kept for a day is gone, what was due in an hour is due.
        clock.set("+0")
        assert await child.enqueue("now") > max(ids.values())
        await child.close()
    records = await checked(url)
    async with Queue.open(url) as queue:
        claims: list[Claim] = []
        async with asyncio.timeout(LIMIT_S):
            while len(claims) < 4:
                claims += await queue.claim("q", limit=10, wait=1)
        assert sorted(claim.payload for claim in claims) == [b"held", b"late", b"now", b"pending"]
        assert [type(record.event).__name__ for record in await queue.history(ids["done"])][:3] == [
            *("Enqueued", "Claimed", "Acked"),
        ]
        await queue.ack_many(claims)
    assert (await checked(url))[: len(records)] == records


@pytest.mark.proof
async def test_an_older_store_under_a_clock_that_was_never_set(url: str, clock: FakedClock) -> None:
    async with Queue.open(url) as queue:
        job_id = (await queue.enqueue("q", b"kept")).job_id
    records = await checked(url)
    clock.set("@1980-01-01 00:00:00")
    async with clock.child(url) as child:
        with pytest.raises(
            Refused, match=r"ClockWentBack.*the clock shows 1980-01-01 00:00:\d\d UTC, but the store was"
        ):
            await child.open()
    assert await checked(url) == records
    async with Queue.open(url) as queue:
        assert (await queue.get(job_id)).state == "pending"


@pytest.mark.proof
async def test_before_1970_each_command_says_so_in_one_line(url: str, clock: FakedClock) -> None:
    async with Queue.open(url) as queue:
        await queue.enqueue("q", b"kept")
    clock.set("@1960-01-01 00:00:00")
    for command in (["enqueue", "--take-over", url, "q", "x"], ["stats", url], ["audit", url]):
        ran = await clock.command("ledgerq", *command)
        assert (ran.code, ran.out) == (3, "")
        assert "the system's clock shows a time before 1970; set the clock" in ran.message
    doctor = await clock.command("ledgerq", "doctor", url, "--json")
    assert (doctor.code, json.loads(doctor.out)["healthy"]) == (1, False)
    assert "before 1970" in doctor.out
    async with Queue.open(url) as queue:
        assert (await queue.stats("q")).pending == 1


@pytest.mark.proof
async def test_a_clock_set_to_before_1970_does_not_stop_an_open_queue(url: str, clock: FakedClock) -> None:
    async with clock.child(url) as child:
        await child.open()
        await child.enqueue("before")
        clock.set("@1960-01-01 00:00:00")
        assert await child.now() == 0
        await child.enqueue("in between")
        assert await child.claim(0) == ["before", "in between"]
        await child.ack("before")
        await child.ack("in between")
        await child.close()
    assert len([record for record in await checked(url) if type(record.event) is Acked]) == 2
