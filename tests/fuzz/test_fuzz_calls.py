"""Arguments of any type and size: a call takes them or refuses them with an error of ours, and the ledger is clean."""

import asyncio
import datetime as dt
import math
from array import array
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ledgerq import NewJob, Queue, QueueOptions, StoreOptions, Worker
from ledgerq.eventlog.errors import InvalidArgument, InvalidQueueName, LedgerError, PayloadTooLarge
from ledgerq.eventlog.keys import MAX_QUEUE_NAME_BYTES
from ledgerq.worker.claims import Claim
from tests.support.loops import settle
from tests.support.operators import WHO
from tests.support.rig import Rig, claim_all

ULID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
HUGE = 10**400


def released() -> memoryview:
    """One that can't be read any more."""
    view = memoryview(b"abc")
    view.release()
    return view


NUMBERS = [True, False, 0, -1, 1, 2**32, 2**63, 2**64, HUGE, -HUGE, 0.5, -1.5, 1e308, math.nan, math.inf, -math.inf]
TEXTS = [
    "",
    "a",
    "a" * 255,
    "a" * 256,
    "ü" * 127,
    "ü" * 128,
    "a\0b",
    "\0",
    "/",
    "\ud800",
    ULID,
    ULID.lower(),
    "x" * 5000,
]
BYTES = [b"", b"a", b"\0", b"a" * 255, b"a" * 1024, b"a" * 1025, bytearray(b"x"), memoryview(b"abcd")[::2], released()]
OTHERS: list[Any] = [None, (), [], ["q"], ["q", "q"], [[]], ("q", "p"), {}, set(), object(), float, array("I", [1, 2])]
MAPPINGS = [{"a": "b"}, {"a": 1}, {1: "a"}, {b"a": b"b"}, {"\ud800": "a"}, {"a": "\ud800"}, {"a": None}, {"": ""}]
TIMES = [dt.datetime(2026, 1, 1), dt.datetime.max.replace(tzinfo=dt.UTC), dt.datetime.min.replace(tzinfo=dt.UTC)]
VALUES = [*NUMBERS, *TEXTS, *BYTES, *OTHERS, *MAPPINGS, *TIMES, Path("x"), NewJob(b"x"), iter([b"x"])]

Call = Callable[[Queue, Claim, Any], Awaitable[object]]
CALLS: dict[str, Call] = {
    **{
        f"enqueue {name}": lambda queue, claim, value, name=name: queue.enqueue("p", b"", **{name: value})  # type: ignore[misc]
        for name in ("priority", "delay", "run_at", "max_attempts", "unique_key", "unique_until", "job_id")
    },
    "enqueue queue": lambda queue, claim, value: queue.enqueue(value, b""),
    "enqueue payload": lambda queue, claim, value: queue.enqueue("p", value),
    "enqueue_many queue": lambda queue, claim, value: queue.enqueue_many(value, [b""]),
    "enqueue_many jobs": lambda queue, claim, value: queue.enqueue_many("p", value),
    "enqueue_many job": lambda queue, claim, value: queue.enqueue_many("p", [b"", value]),
    "claim queue": lambda queue, claim, value: queue.claim(value),
    "claim queues": lambda queue, claim, value: queue.claim(["empty", value]),
    "claim limit": lambda queue, claim, value: queue.claim("p", limit=value),
    "claim lease": lambda queue, claim, value: queue.claim("p", lease=value),
    "claim worker": lambda queue, claim, value: queue.claim("p", worker=value),
    "nack error": lambda queue, claim, value: queue.nack(claim, value),
    "nack delay": lambda queue, claim, value: queue.nack(claim, "e", delay=value),
    "release reason": lambda queue, claim, value: queue.release(claim, value),
    "extend lease": lambda queue, claim, value: queue.extend(claim, value),
    "get": lambda queue, claim, value: queue.get(value),
    "payload": lambda queue, claim, value: queue.payload(value),
    "history": lambda queue, claim, value: queue.history(value),
    "stats": lambda queue, claim, value: queue.stats(value),
    "jobs": lambda queue, claim, value: queue.jobs(value),
    "jobs state": lambda queue, claim, value: queue.jobs("q", state=value),
    "jobs limit": lambda queue, claim, value: queue.jobs("q", limit=value),
    "jobs after": lambda queue, claim, value: queue.jobs("q", after=value),
    "cancel": lambda queue, claim, value: queue.cancel(value, **WHO),
    "requeue": lambda queue, claim, value: queue.requeue(value, **WHO),
    "pause": lambda queue, claim, value: queue.pause(value, **WHO),
    "resume": lambda queue, claim, value: queue.resume(value, **WHO),
    "pause actor": lambda queue, claim, value: queue.pause("other", actor=value, reason="r"),
    "pause reason": lambda queue, claim, value: queue.pause("other", actor="a", reason=value),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_call_takes_an_argument_or_refuses_it(call: Call) -> None:
    async with Rig() as rig:
        for value in VALUES:
            await rig.queue.enqueue("q", b"payload")
            (claim,) = await rig.queue.claim("q")
            try:
                async with asyncio.timeout(60):
                    await call(rig.queue, claim, value)
            except LedgerError:
                pass
            assert rig.queue.failure is None, value
        await rig.advance(0)


async def test_a_name_of_an_unhashable_type_or_none_at_all() -> None:
    name: object
    names: object
    async with Rig() as rig:
        for name in ([], {}, None, 5, b"q", bytearray(b"q"), released()):
            with pytest.raises(InvalidQueueName):
                await rig.queue.enqueue(name, b"")  # type: ignore[arg-type]
        for names in (None, 5, [[]], [{}], ["q", None], released()):
            with pytest.raises(InvalidQueueName):
                await rig.queue.claim(names)  # type: ignore[arg-type]
        for names in (None, 5, [[]]):
            with pytest.raises(InvalidQueueName):
                await rig.queue.drained(names)  # type: ignore[arg-type]


@pytest.mark.parametrize("jobs", [None, 5, b"abc", "abc", iter([b"a"]), {"a": b"b"}, {b"a"}, NewJob(b"x")])
async def test_many_jobs_are_a_list(jobs: Any) -> None:
    async with Rig() as rig:
        with pytest.raises(InvalidArgument, match="a list of jobs"):
            await rig.queue.enqueue_many("q", jobs)
        assert (await rig.queue.stats("q")).pending == 0


# ---------------------------------------------------------------------- options


OPTIONS: list[tuple[type[Any], str]] = [
    *((QueueOptions, name) for name in QueueOptions.model_fields),
    *((NewJob, name) for name in NewJob.model_fields),
    *((StoreOptions, name) for name in StoreOptions.__dataclass_fields__ if name not in ("fsync", "settings")),
]


@pytest.mark.parametrize(("options", "name"), OPTIONS, ids=lambda value: getattr(value, "__name__", value))
def test_an_option_is_taken_or_refused(options: type[Any], name: str) -> None:
    refused = 0
    for value in VALUES:
        try:
            options(**({"payload": b""} if options is NewJob else {}) | {name: value})
        except InvalidArgument:
            refused += 1
    assert refused > 5


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -math.inf, -1, "30", HUGE, None])
def test_no_time_or_number_is_made_up_from_something_else(value: Any) -> None:
    for name in ("lease_s", "max_attempts", "priority", "keep_done_s", "max_payload_bytes"):
        with pytest.raises(InvalidArgument, match=f"QueueOptions: {name}"):
            QueueOptions(**{name: value})
    for name in ("open_timeout_s", "gc_interval_s", "cache_bytes"):
        with pytest.raises(InvalidArgument, match=name):
            StoreOptions(**{name: value})


def test_an_option_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"^QueueOptions: leese: .*$"):  # on one line
        QueueOptions(leese=5)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "given",
    [
        *({"ready_window": value} for value in (0, -1, True, 1.5, math.nan, math.inf, "9", None, b"")),
        *({"commit_interval_ms": value} for value in (-1, True, math.nan, math.inf, 10**6, HUGE, "9", b"")),
        *({"default": value} for value in (None, 5, {}, {"lease_s": 5}, NewJob(b""))),
        *({"queues": value} for value in (5, "q", ["q"], {"q": 5}, {"q": {"lease_s": 5}})),
        *({"queues": {name: QueueOptions()}} for name in ("", "a\0b", "a" * 256, 5, "\ud800")),
        {"url": None},
        {"url": 5},
        {"url": b"memory:///"},
    ],
    ids=repr,
)
async def test_a_queue_is_not_opened_with_what_makes_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        await Queue.open(**given)
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("name", ["concurrency", "prefetch", "max_settling", "max_settling_bytes", "grace"])
async def test_a_worker_is_not_made_with_what_makes_no_sense(name: str) -> None:
    async with Rig() as rig:
        for value in VALUES:
            try:
                Worker(rig.queue, **{name: value})
            except InvalidArgument:
                continue
            assert type(value) in (int, float, type(None)), value


# ---------------------------------------------------------------------- names, keys and headers that look like others


async def test_names_and_keys_with_separators_never_meet() -> None:
    names = ["q", "q/", "q\x01", "q\xff", "q/i", "i/pending/q", "Q", "q" * 255, "ü" * 127, "qq", " q", "q ", "\u202eq"]
    keys: list[str | bytes] = ["k", b"\0", b"q\0k", "k\0", b"\0k", b"\xff" * 1024, "/", b"k" * 255, b"k" * 256]
    async with Rig() as rig:
        added: dict[tuple[str, bytes], str] = {}
        for name in names:
            for i, key in enumerate(keys):
                job = await rig.queue.enqueue(name, b"%d" % i, unique_key=key, priority=i)
                assert job.created
                added[name, b"%d" % i] = job.job_id
                again = await rig.queue.enqueue(name, b"", unique_key=key if isinstance(key, bytes) else key.encode())
                assert (again.job_id, again.created) == (job.job_id, False)
        assert sorted(await rig.queue.queues(), key=str.encode) == sorted(names, key=str.encode)
        await rig.reopen()
        for name in names:
            claims = await claim_all(rig.queue, name)
            assert [(claim.queue, claim.payload, claim.job_id) for claim in claims] == [
                (name, b"%d" % i, added[name, b"%d" % i]) for i in range(len(keys))
            ]


@settings(deadline=None, derandomize=True, max_examples=20)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
            st.binary(max_size=40),
            st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3),
            st.none() | st.text(max_size=4) | st.binary(max_size=4),
        ),
        min_size=1,
        max_size=6,
    )
)
@example([("q", bytes(1024 * 1024), None, None)])
@example([("q", b"", {"a": "b" * 1024 * 1024}, None), ("q", bytes(1024 * 1024 - 2), {"a": "b"}, None)])
@example([("q", b"", {str(i): "" for i in range(20_000)}, "k"), ("q\0", b"", None, None)])
def test_what_is_taken_comes_back_as_it_was(jobs: list[tuple[str, bytes, Mapping[str, str] | None, Any]]) -> None:
    async def run() -> None:
        async with Rig() as rig:
            taken: dict[str, tuple[str, bytes, dict[str, str]]] = {}
            for name, payload, headers, key in jobs:
                try:
                    job = await rig.queue.enqueue(name, payload, headers=headers, unique_key=key)
                except PayloadTooLarge:
                    assert len(payload) + sum(len(text.encode()) for text in _texts(headers)) > 1024 * 1024
                except InvalidArgument:
                    fits = 1 <= len(name.encode()) <= MAX_QUEUE_NAME_BYTES and "\0" not in name
                    assert not fits or key in ("", b"") or _has_surrogates(*_texts(headers), key)
                else:
                    if job.created:
                        taken[job.job_id] = (name, payload, dict(headers or {}))
            await rig.reopen()
            for job_id, (name, payload, given) in taken.items():
                record = await rig.queue.payload(job_id)
                assert (record.payload, dict(record.headers or {})) == (payload, given)
                assert (await rig.queue.get(job_id)).queue == name

    asyncio.run(run())


def _texts(headers: Mapping[str, str] | None) -> list[str]:
    return [] if headers is None else [*headers, *headers.values()]


def _has_surrogates(*texts: Any) -> bool:
    return any(isinstance(text, str) and any("\ud800" <= sign <= "\udfff" for sign in text) for text in texts)


# ---------------------------------------------------------------------- the log's own readers


@pytest.mark.parametrize("offset", [-HUGE, -(2**64), -1, 2**63, 2**64 - 1, 2**64, HUGE])
async def test_an_offset_that_no_log_has_is_no_error(offset: int) -> None:
    async with Rig() as rig:
        await rig.queue.enqueue("q", b"")
        log = rig.queue.log
        everything = [record async for record in log.read()]
        assert [record async for record in log.read(offset)] == (everything if offset < 0 else [])
        assert [record async for record in log.read(0, offset)] == ([] if offset < 0 else everything)
        batch = await log.batch_at(offset)
        assert (batch is None) if offset < 0 else (batch is not None and batch.next_offset == len(everything))
        assert await log.offset_at_time(offset) == (0 if offset < 0 else len(everything))
