"""Harm to single rows that the chain does not cover, or with the chain made right again: each is named, none is silent.

Texts, the store's secret, and a log whose digests, head and anchor were all made anew after an event was changed.
"""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import ManualClock, SystemClock
from ledgerq.eventlog.codec import (
    KIND_OF,
    NO_DIGEST,
    decode_batch,
    decode_head,
    digest_of,
    encode_batch,
    encode_head,
    pack,
    unpack,
)
from ledgerq.eventlog.entropy import SeededEntropy
from ledgerq.eventlog.events import Claimed, Event, Nacked, QueueResumed
from ledgerq.eventlog.recovery.sorted_files import read_sst
from ledgerq.eventlog.side_records import encode_sealed
from ledgerq.eventlog.store import Anchor
from ledgerq.eventlog.stores import open_reader, open_store
from ledgerq.worker.queue import Queue
from tests.support.cli_rig import BASE_MS, Cli
from tests.support.ledger_checks import all_rows
from tests.support.operators import WHO
from tests.tiers import sampled

Rows = dict[bytes, bytes]
Changes = dict[bytes, bytes | None]
TEXTS = 7


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return Cli(capsys, monkeypatch)


class Whole(NamedTuple):
    """An undamaged store, its rows, and the ids of two of its jobs: one that was tried three times, a unique one."""

    folder: Path
    rows: Rows
    retried: str
    unique: str


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "store"

    async def fill() -> Whole:
        options = {"clock": ManualClock(BASE_MS), "entropy": SeededEntropy(2)}
        async with Queue.open(str(folder), **options) as queue:  # type: ignore[call-overload]
            retried = (await queue.enqueue("mail", b"retried")).job_id
            for error in ("first", "second"):
                (claim,) = await queue.claim("mail")
                await queue.nack(claim, error, delay=0)
            (claim,) = await queue.claim("mail")
            await queue.ack(claim)
            dead = await queue.enqueue("mail", b"dead")
            (claim,) = await queue.claim("mail")
            await queue.nack(claim, "boom", dead=True)
            await queue.requeue(dead.job_id, **WHO)
            unwanted = await queue.enqueue("mail", b"unwanted", delay=60)
            await queue.cancel(unwanted.job_id, **WHO)
            unique = await queue.enqueue("mail", b"unique", unique_key="k", delay=60)
            await queue.pause("other", **WHO)
            await queue.enqueue("steps", b"")
            (claim,) = await queue.claim("steps")
            await queue.finish_step(claim, "charge", b'"receipt"')
            await queue.ack(claim)
        reader = await open_reader(str(folder), pinned=True)
        rows = await all_rows(reader)
        await reader.close()
        return Whole(folder, rows, retried, unique.job_id)

    found = asyncio.run(fill())
    assert sum(key.startswith(keys.TEXT_PREFIX) for key in found.rows) == TEXTS
    return found


@pytest.fixture
def folder(whole: Whole, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole.folder, tmp_path / "store"))


def harm(folder: Path, changes: Changes) -> None:
    """Write these rows; where the head is one of them, with the anchor of it."""

    async def change() -> None:
        store = await open_store(str(folder), clock=SystemClock(), create=False)
        batch = store.batch()
        batch.update(changes)
        anchor = await store.read_anchor()
        assert anchor is not None
        if head := changes.get(keys.HEAD_KEY):
            new = decode_head(head)
            anchor = Anchor(new.base_offset, new.next_offset, new.digest, new.epoch, new.time_ms)
        await store.commit(batch, anchor)
        await store.close()

    asyncio.run(change())


def rows_of(folder: Path, prefix: bytes) -> Rows:
    async def read() -> Rows:
        reader = await open_reader(str(folder), pinned=True)
        try:
            return await all_rows(reader, prefix, keys.after_prefix(prefix))
        finally:
            await reader.close()

    return asyncio.run(read())


def events_of(rows: Rows) -> list[Event]:
    """All events, by their offsets."""
    batches = [decode_batch(keys.offset_of(k), v) for k, v in sorted(rows.items()) if k.startswith(keys.LOG_PREFIX)]
    return [event for batch in batches for event in batch.events]


def forged(rows: Rows, changed: dict[int, tuple[Event, int]]) -> Changes:
    """The log with other events and distances at some offsets, and all digests made right again."""
    changes: Changes = {}
    previous, digest = NO_DIGEST, b""
    for key, value in sorted(rows.items()):
        if not key.startswith(keys.LOG_PREFIX):
            continue
        batch = decode_batch(keys.offset_of(key), value)
        assert batch.distances is not None
        pairs = zip(range(batch.base_offset, batch.next_offset), batch.events, batch.distances, strict=True)
        both = [changed.get(offset, (event, distance)) for offset, event, distance in pairs]
        events, distances = [event for event, _ in both], [distance for _, distance in both]
        kinds = bytes(KIND_OF[type(event)] for event in events)
        forgery = encode_batch(batch.epoch, previous, batch.time_ms, kinds, events, distances)
        changes[key], previous = forgery, digest_of(forgery)
        digest = previous
    return changes | {keys.HEAD_KEY: encode_head(decode_head(rows[keys.HEAD_KEY])._replace(digest=digest))}


# ---------------------------------------------------------------------- texts


def _first_text(whole: Whole) -> bytes:
    """The text of the first error of the job that was tried three times."""
    return min(key for key in whole.rows if key.startswith(keys.TEXT_PREFIX))


def _changed(change: Callable[[bytes], bytes | None]) -> Callable[[Whole], Changes]:
    return lambda whole: {_first_text(whole): change(whole.rows[_first_text(whole)])}


def _value(whole: Whole) -> bytes:
    """The value of the step, which is the last of all texts."""
    return max(key for key in whole.rows if key.startswith(keys.TEXT_PREFIX))


def _exchanged(whole: Whole) -> Changes:
    first, second = sorted(key for key in whole.rows if key.startswith(keys.TEXT_PREFIX))[:2]
    return {first: whole.rows[second], second: whole.rows[first]}


TEXT_HARMS: dict[str, tuple[Callable[[Whole], Changes], int]] = {
    "deleted": (_changed(lambda value: None), 1),
    "a bit flipped": (_changed(lambda value: value[:-1] + bytes([value[-1] ^ 1])), 1),
    "cut": (_changed(lambda value: value[:-1]), 1),
    "emptied": (_changed(lambda value: b""), 1),
    "another text": (_changed(lambda value: encode_sealed(unpack(value)[0], "else")), 1),
    "bytes for text": (_changed(lambda value: encode_sealed(unpack(value)[0], b"first")), 1),
    "no text at all": (_changed(lambda value: pack(7)), 1),
    "two exchanged": (_exchanged, 2),
    "the value of a step deleted": (lambda whole: {_value(whole): None}, 1),
    "the value of a step changed": (lambda whole: {_value(whole): whole.rows[_value(whole)] + b"x"}, 1),
}
"""What is done, and how many texts that costs."""


@pytest.mark.parametrize("name", sampled(TEXT_HARMS))
def test_a_harmed_text_is_named_and_costs_only_itself(cli: Cli, whole: Whole, folder: Path, name: str) -> None:
    do, count = TEXT_HARMS[name]
    changes = do(whole)
    harm(folder, changes)
    cli.ok("audit", folder)
    found = cli("audit", folder, "--deep", "--json")
    assert (found.code, found.json["difference_count"]) == (1, count)
    assert [(row["range"], row["raw_key"]) for row in found.json["differences"]] == [
        ("text", key.hex()) for key in sorted(changes)
    ]
    told = " ".join(cli("audit", folder, "--deep").out.split())
    assert "gone, damaged or of no event, which costs nothing else" in told
    assert "mend with" not in told
    # All else goes on: the job, its history, the other texts, and a writer.
    history = " ".join(cli.ok("history", folder, whole.retried).out.split())
    assert ("a text beside the log, with digest" in history) != name.startswith("the value of a step")  # another job's
    assert ("second" in history) == (count == 1)
    cli.ok("show", folder, whole.retried)
    cli.ok("jobs", folder, "mail")
    cli.ok("pause", folder, "mail", "--reason", "why")
    # A rebuild has nothing to do for it; copies name it and lack it alone.
    cli.ok("rebuild-projections", folder)
    offsets = sorted(map(keys.offset_of, changes))
    copied = cli.ok("rebuild-projections", folder, "--into", folder.parent / "copy", "--json").json
    assert (copied["lost_texts"], copied["lost_payloads"], copied["secret_is_new"]) == (offsets, [], False)
    again = cli("audit", folder.parent / "copy", "--deep", "--json")
    assert [row["raw_key"] for row in again.json["differences"]] == [key.hex() for key in sorted(changes)]
    assert all(row["found"] is None for row in again.json["differences"])


def test_a_text_that_only_an_older_file_holds_is_salvaged(cli: Cli, whole: Whole, folder: Path) -> None:
    """A salvage takes what has the right digest, wherever it is; a row written over it is another."""
    harm(folder, TEXT_HARMS["another text"][0](whole))
    saved = cli.ok("rebuild-projections", folder, "--into", folder.parent / "saved", "--salvage", "--json").json
    assert (saved["whole"], saved["lost_texts"]) == (True, [])
    assert rows_of(folder.parent / "saved", keys.TEXT_PREFIX) == {
        key: value for key, value in whole.rows.items() if key.startswith(keys.TEXT_PREFIX)
    }


@pytest.mark.parametrize(
    "key", sampled([keys.text_key(0), keys.text_key(10_000), b"t/", b"t/x", keys.text_key(1) + b"x"])
)
def test_a_text_of_no_event_is_named_and_not_copied(cli: Cli, whole: Whole, folder: Path, key: bytes) -> None:
    harm(folder, {key: encode_sealed(bytes(16), "mine")})
    cli.ok("audit", folder)
    (row,) = cli("audit", folder, "--deep", "--json").json["differences"]
    assert (row["range"], row["raw_key"], row["expected"]) == ("text", key.hex(), None)
    cli.ok("rebuild-projections", folder, "--into", folder.parent / "copy")
    cli.ok("rebuild-projections", folder, "--into", folder.parent / "saved", "--salvage")
    for new in ("copy", "saved"):
        cli.ok("audit", folder.parent / new, "--deep")


# ---------------------------------------------------------------------- the secret


@pytest.mark.parametrize("value", sampled([None, b"", bytes(31)]))
def test_a_missing_secret_is_named_and_made_anew(cli: Cli, whole: Whole, folder: Path, value: bytes | None) -> None:
    harm(folder, {keys.SECRET_KEY: value})
    for deep in ([], ["--deep"]):
        found = cli("audit", folder, "--json", *deep)
        assert found.code == 1
        assert [row["raw_key"] for row in found.json["differences"]] == [keys.SECRET_KEY.hex()]
    assert "mend with rebuild-projections" in " ".join(cli("audit", folder).out.split())
    message = cli.fails(3, "enqueue", folder, "mail", "x")
    assert "its secret" in message or "the secret of" in message
    for into in ("copy", "saved"):
        more = ["--salvage"] if into == "saved" else []
        copied = cli("rebuild-projections", folder, "--into", folder.parent / into, "--json", *more)
        # An older row of the secret may still lie in some file, where only a salvage finds it.
        assert copied.code == 0
        assert copied.json["secret_is_new"] == (into == "copy")
        cli.ok("audit", folder.parent / into, "--deep")
    told = cli.ok("rebuild-projections", folder).out
    assert "secret  it was missing, and is a new one: unique keys of unfinished jobs are not recognised" in told
    cli.ok("audit", folder, "--deep")
    assert "the secret" in cli.ok("log", folder).out.splitlines()[-1]
    added = cli.ok("enqueue", folder, "mail", "x", "--unique-key", "k", "--json").json
    assert added["job_id"] != whole.unique


def test_another_secret_is_named_by_a_deep_audit(cli: Cli, whole: Whole, folder: Path) -> None:
    harm(folder, {keys.SECRET_KEY: bytes(32)})
    cli.ok("audit", folder)
    found = cli("audit", folder, "--deep", "--json")
    assert found.code == 1
    (row,) = found.json["differences"]
    assert (row["range"], whole.unique in row["key"]) == ("secret", True)
    told = " ".join(cli("audit", folder, "--deep").out.split())
    assert "put the secret back from a copy of the store" in told
    cli.ok("rebuild-projections", folder)
    assert cli("audit", folder, "--deep").code == 1
    harm(folder, {keys.SECRET_KEY: whole.rows[keys.SECRET_KEY]})
    cli.ok("audit", folder, "--deep")


# ---------------------------------------------------------------------- a forged log


def _last_claim(whole: Whole) -> int:
    """The third claim of the job that was tried three times."""
    events = events_of(whole.rows)
    return max(at for at, event in enumerate(events) if isinstance(event, Claimed) and event.attempt == 3)


def _other_distance(whole: Whole) -> tuple[Changes, int]:
    at = _last_claim(whole)
    return forged(whole.rows, {at: (events_of(whole.rows)[at], at)}), at


def _no_distance(whole: Whole) -> tuple[Changes, int]:
    at = _last_claim(whole)
    return forged(whole.rows, {at: (events_of(whole.rows)[at], 0)}), at


def _distance_of_no_job(whole: Whole) -> tuple[Changes, int]:
    return forged(whole.rows, {0: (events_of(whole.rows)[0], 1)}), 0


def _try_left_out(whole: Whole) -> tuple[Changes, int]:
    """The second try, in whose place two events of a queue stand, so that all that follows keeps its place."""
    at, events = _last_claim(whole), events_of(whole.rows)
    assert isinstance(events[at - 1], Nacked)
    assert isinstance(events[at - 2], Claimed)
    nothing = QueueResumed("elsewhere", "ann", ""), 0
    return forged(whole.rows, {at - 2: nothing, at - 1: nothing}), at


def _event_before_skipped(whole: Whole) -> tuple[Changes, int]:
    """A failed try made one that was given back, whose distance skips its claim."""
    at, events = _last_claim(whole), events_of(whole.rows)
    nack = events[at - 1]
    assert isinstance(nack, Nacked)
    return forged(whole.rows, {at - 1: (replace(nack, released=True), 2)}), at - 1


FORGERIES = {
    "a distance to another event": _other_distance,
    "no distance where there is one": _no_distance,
    "a distance of an event of no job": _distance_of_no_job,
    "a try left out": _try_left_out,
    "an event that names the one before the last": _event_before_skipped,
}


@pytest.mark.parametrize("name", sampled(FORGERIES))
def test_a_forged_life_is_named_by_its_offset_though_the_chain_is_whole(
    cli: Cli, whole: Whole, folder: Path, name: str
) -> None:
    changes, offset = FORGERIES[name](whole)
    harm(folder, changes)
    for deep in ([], ["--deep"]):
        message = cli.fails(1, "audit", folder, *deep)
        assert f"offset {offset}" in message
        assert "names" in message
    assert f"--until {offset}" in cli.fails(1, "rebuild-projections", folder)
    assert f"--until {offset}" in cli.fails(1, "rebuild-projections", folder, "--into", folder.parent / "copy")
    # The files hold the log of before too, and the anchor is the forger's: the salvage keeps what both have.
    saved = cli("rebuild-projections", folder, "--into", folder.parent / "saved", "--salvage", "--json")
    assert saved.code == 4
    assert f"offset {offset}" in saved.json["ended"]
    assert saved.json["events"] == offset
    cli.ok("rebuild-projections", folder, "--until", offset)
    for left in (folder, folder.parent / "saved"):
        # Texts and payloads of jobs that lived on are still there, as far as the log goes.
        cli.ok("audit", left)


# ---------------------------------------------------------------------- a damaged block of texts


@pytest.mark.proof
def test_a_damaged_block_of_texts_costs_its_texts_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "store"

    async def fill() -> None:
        async with Queue.open(str(folder)) as queue:
            await queue.enqueue_many("mail", [b""] * 300)
            while claims := await queue.claim("mail", limit=300):
                await asyncio.gather(*(queue.nack(claim, "boom " * 60, dead=True) for claim in claims))

    asyncio.run(fill())
    for path in folder.glob("wal/*.sst"):
        path.unlink()
    (path,) = folder.glob("compacted/*.sst")
    blocks = [
        part
        for part in read_sst(path.read_bytes())
        if part.rows and all(row.key.startswith(keys.TEXT_PREFIX) for row in part.rows)
    ]
    block = blocks[len(blocks) // 2]
    data = bytearray(path.read_bytes())
    data[block.start + 8] ^= 1
    path.write_bytes(data)
    offsets = [keys.offset_of(row.key) for row in block.rows]
    log = [line for line in cli.ok("log", folder, "--json").lines if line["offset"] in offsets]
    for job_id in {line["job_id"] for line in log}:
        for command in ("show", "history"):
            assert "a text beside the log, with digest" in " ".join(cli.ok(command, folder, job_id).out.split())
    assert len(cli.ok("jobs", folder, "mail", "--limit", 1000, "--json").lines) >= 300
    found = cli("audit", folder, "--deep", "--json")
    assert found.code == 1
    assert [row["key"] for row in found.json["differences"]] == [f"offset {at}" for at in offsets]
    copied = cli.ok("rebuild-projections", folder, "--into", tmp_path / "copy", "--json").json
    assert (copied["lost_texts"], copied["lost_payloads"]) == (offsets, [])
    saved = cli("rebuild-projections", folder, "--into", tmp_path / "saved", "--salvage", "--json")
    assert (saved.code, saved.json["lost_texts"], saved.json["promised_is_there"]) == (4, offsets, True)
    told = cli("rebuild-projections", folder, "--into", tmp_path / "told", "--salvage")
    assert f"lost: {len(offsets)} texts" in " ".join(told.out.split())
