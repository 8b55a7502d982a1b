"""The publisher: what it signs follows from the log, whatever happens to it, to the log, or to what stands there."""

from collections.abc import Callable
from hashlib import blake2b, sha256

import msgpack
import pytest

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import decode_batch, digest_of, encode_batch, stored_batch
from ledgerq.eventlog.errors import LogCorrupt, NotPublished, ProofRefused, StoreUnavailable, TreeForked
from ledgerq.eventlog.events import Checkpointed
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.trust.entries import batch_leaf
from ledgerq.eventlog.trust.notes import SigningKey
from ledgerq.eventlog.trust.places import CHECKPOINT
from ledgerq.eventlog.trust.verifier import check_receipt, open_checkpoint, policy_of
from tests.support.rig import Rig
from tests.support.small_logs import append as append_one
from tests.support.small_logs import change_head, start_log, stored_bases
from tests.support.trees import KEY, Killed, MemoryPlace, job_offsets, log_of, publish_to, receipt_of, size_of
from tests.unit.eventlog.test_tree import naive_root


async def some_jobs(rig: Rig, count: int = 3) -> list[str]:
    """Jobs enqueued one by one, claimed together, and acked together: batches of one event and of several."""
    ids = [(await rig.queue.enqueue("q", b"x")).job_id for _ in range(count)]
    await rig.queue.ack_many(await rig.queue.claim("q", limit=count))
    return ids


def copy_of(disk: MemoryDisk) -> MemoryDisk:
    """Another disk with the same rows."""
    other = MemoryDisk()
    other.rows.update(disk.rows)
    return other


def signed_root(place: MemoryPlace) -> bytes:
    """The root in the checkpoint, its signature checked."""
    return open_checkpoint(place.files[CHECKPOINT], policy_of(KEY.verifier)).root


async def test_the_bytes_of_a_leaf_are_as_documented() -> None:
    async with Rig() as rig:
        await some_jobs(rig, 2)
        secret = rig.disk.rows[keys.SECRET_KEY]
        roots = []
        for base in stored_bases(rig.disk):
            value = rig.disk.rows[keys.log_key(base)]
            version, epoch, _, time_ms, kinds, events, distances = msgpack.unpackb(value, use_list=False)
            leaves = []
            for at, (kind, fields, distance) in enumerate(zip(kinds, events, distances, strict=True)):
                offset = base + at
                before = offset - distance if distance else None
                entry = msgpack.packb([1, offset, time_ms, epoch, kind, before, fields])
                salt = blake2b(offset.to_bytes(8), key=secret, digest_size=16).digest()
                leaves.append(sha256(b"\0" + sha256(b"ledgerq.dev/event/v1\n" + salt + entry).digest()).digest())
            found = b"\1" + base.to_bytes(8) + (base + len(events)).to_bytes(8)
            found += blake2b(value, digest_size=32).digest() + naive_root(leaves)
            assert (version, len(found)) == (2, 81)
            assert batch_leaf(base, value, secret).entry.encode() == found
            roots.append(sha256(b"\0" + found).digest())
        place = MemoryPlace()
        done = await publish_to(place, rig.disk)
        assert (done.size, done.root) == (len(roots), naive_root(roots))
        assert done.events == done.next_offset == rig.queue.log.durable_head.next_offset
        assert signed_root(place) == done.root


async def test_a_tree_published_in_steps_is_the_one_published_at_once() -> None:
    async with Rig() as rig:
        steps, whole = MemoryPlace(), MemoryPlace()
        for count in (1, 3, 250, 5, 260):
            await some_jobs(rig, count)
            done = await publish_to(steps, rig.disk)
            assert done.leaves > 0
            assert (await publish_to(steps, rig.disk))[-2:] == (0, 0)
        assert await publish_to(whole, rig.disk) == done._replace(leaves=done.size, events=done.next_offset)
        # Of tiles that are full the partial ones are gone.
        assert {path: steps.files[path] for path in whole.files} == whole.files
        assert not [path for path in steps.files if path.partition(".p/")[0] in steps.files and ".p/" in path]


async def test_killed_at_any_write_the_next_one_goes_on() -> None:
    async with Rig() as rig:
        await some_jobs(rig, 2)
        begun = MemoryPlace()
        await publish_to(begun, rig.disk)
        await some_jobs(rig, 255)
        whole = MemoryPlace()
        done = await publish_to(whole, rig.disk)
        for after in (False, True):
            for left in range(100):
                place = MemoryPlace(dict(begun.files))
                place.left, place.after = left, after
                try:
                    await publish_to(place, rig.disk)
                except Killed:
                    place.left = None
                    again = await publish_to(place, rig.disk)
                    assert again.root == done.root == signed_root(place)
                    assert {place.files[path] == content for path, content in whole.files.items()} == {True}
                else:
                    break
            assert left > 7


async def test_two_publishers_never_sign_two_trees() -> None:
    async with Rig() as rig:
        await some_jobs(rig)
        place = MemoryPlace()
        await publish_to(place, rig.disk)
        await some_jobs(rig)
        one, two = copy_of(rig.disk), copy_of(rig.disk)
        for disk, numbers in ((one, [1]), (two, [2, 3])):
            log = await start_log(disk)
            for number in numbers:
                await append_one(log, number)
            await log.close()
        # Both have read the same checkpoint; the second one then finds another tile, or another checkpoint, there.
        late = MemoryPlace(place.files)
        first_get = late.get
        note = place.files[CHECKPOINT]

        async def get(name: str) -> bytes | None:
            return note if name == CHECKPOINT else await first_get(name)

        late.get = get  # type: ignore[method-assign]
        await publish_to(place, one)
        signed = place.files[CHECKPOINT]
        with pytest.raises((TreeForked, StoreUnavailable)):
            await publish_to(late, two)
        assert place.files[CHECKPOINT] == signed
        assert not late.signed
        with pytest.raises(TreeForked, match=r"lost its end|was rewritten"):
            await publish_to(place, two)
        # The same log twice at the same time is no fork: the slower one is told so.
        late.files = dict(place.files)
        with pytest.raises(StoreUnavailable, match="another publisher"):
            await publish_to(late, one)


def cut(disk: MemoryDisk) -> None:
    """Roll the log back by its last batch."""
    del disk.rows[keys.log_key(stored_bases(disk)[-1])]
    end(disk)


def end(disk: MemoryDisk) -> None:
    """Make the head that of the last batch."""
    last = stored_bases(disk)[-1]
    batch = decode_batch(last, disk.rows[keys.log_key(last)])
    change_head(disk, next_offset=batch.next_offset, digest=batch.digest, base_offset=last)


def rewrite(disk: MemoryDisk) -> None:
    """Change the time of the first batch, and make all digests right again."""
    previous = bytes(32)
    for at in stored_bases(disk):
        one = decode_batch(at, disk.rows[keys.log_key(at)])
        kinds = stored_batch(at, disk.rows[keys.log_key(at)])[0].kinds
        time_ms = one.time_ms - (at == 0)
        value = encode_batch(one.epoch, previous, time_ms, kinds, one.events, one.distances or [])
        disk.rows[keys.log_key(at)] = value
        previous = digest_of(value)
    end(disk)


def new_secret(disk: MemoryDisk) -> None:
    """Lose the secret, and make another one."""
    disk.rows[keys.SECRET_KEY] = bytes(32)


@pytest.mark.parametrize(
    ("change", "what"),
    [(cut, "lost its end|was rewritten"), (rewrite, "was rewritten"), (new_secret, "another secret")],
)
async def test_a_log_that_is_not_the_published_one_is_not_signed(
    change: Callable[[MemoryDisk], None], what: str
) -> None:
    async with Rig() as rig:
        (job, *_) = await some_jobs(rig)
        place = MemoryPlace()
        await publish_to(place, rig.disk)
        before = dict(place.files)
        await receipt_of(rig, place, job)
        disk = copy_of(rig.disk)
        change(disk)
        with pytest.raises(TreeForked, match=what):
            await publish_to(place, disk)
        assert place.files == before


async def test_a_damaged_log_is_not_signed() -> None:
    async with Rig() as rig:
        await some_jobs(rig)
        for number in (0, 2, -1):
            disk, place = copy_of(rig.disk), MemoryPlace()
            del disk.rows[keys.log_key(stored_bases(disk)[number])]
            with pytest.raises(LogCorrupt, match=r"doesn't follow|where its head is|is missing"):
                await publish_to(place, disk)
            assert CHECKPOINT not in place.files
        disk = copy_of(rig.disk)
        del disk.rows[keys.SECRET_KEY]
        with pytest.raises(LogCorrupt, match="secret is missing"):
            await publish_to(MemoryPlace(), disk)


async def test_what_stands_there_must_be_the_keys_own_and_whole() -> None:
    async with Rig() as rig:
        (job, *_) = await some_jobs(rig)
        place = MemoryPlace()
        await publish_to(place, rig.disk)
        for other in (SigningKey.of("example.com/jobs", bytes(32)), SigningKey.of("example.com/other", KEY.seed)):
            with pytest.raises(TreeForked, match=r"not signed by the key|no log that is trusted"):
                await publish_to(place, rig.disk, other)
        await some_jobs(rig)
        for path, content in place.files.items():
            for wrong in ({path: content[:-40] + bytes(40)}, {path: content[:-1]}, {}):
                if path == "log.vkey" and not wrong:
                    continue  # it is made anew
                kept = {name: file for name, file in place.files.items() if name != path}
                damaged = MemoryPlace(kept | wrong)
                if path != CHECKPOINT or wrong:  # without one the same tree is made again
                    with pytest.raises(TreeForked):
                        await publish_to(damaged, rig.disk)
                    assert not damaged.signed
                try:
                    receipt = await receipt_of(rig, damaged, job)
                except (ProofRefused, NotPublished):
                    continue
                assert check_receipt(receipt, policy_of(KEY.verifier)).checkpoint.size == size_of(place)


async def test_nothing_is_signed_that_contradicts_what_the_key_signed_before() -> None:
    async with Rig() as rig:
        await some_jobs(rig)
        old, place = copy_of(rig.disk), MemoryPlace()
        await publish_to(place, old)
        old_place = MemoryPlace(dict(place.files))
        await some_jobs(rig)
        signed = (await publish_to(place, rig.disk)).note
        # Whoever owns store and tree puts back older copies of both, or begins both anew.
        with pytest.raises(TreeForked, match="older copy"):
            await publish_to(old_place, old, signed=signed)
        forged = copy_of(rig.disk)
        rewrite(forged)
        with pytest.raises(TreeForked, match="was rewritten"):
            await publish_to(MemoryPlace(), forged, signed=signed)
        # Another place for the same log is none the worse.
        assert (await publish_to(old_place, rig.disk, signed=signed)).note == signed
        assert (await publish_to(place, rig.disk, signed=signed)).note == signed
        other = await publish_to(MemoryPlace(), rig.disk, SigningKey.of("example.com/other", bytes(32)))
        with pytest.raises(TreeForked, match="no log that is trusted"):
            await publish_to(place, rig.disk, signed=other.note)


async def test_nothing_is_signed_that_contradicts_what_the_log_notes() -> None:
    async with Rig() as rig:
        await some_jobs(rig)
        place = MemoryPlace()
        done = await publish_to(place, rig.disk)
        for size, root, is_good in ((done.size, done.root, True), (2, done.root, False), (999, done.root, False)):
            disk = copy_of(rig.disk)
            log = await start_log(disk)
            log.append(Checkpointed("example.com/other", bytes(4), 1, 1, bytes(32)))
            log.append(Checkpointed("example.com/jobs", KEY.verifier.key_id, size, done.next_offset, root))
            await log.committed()
            await log.close()
            copy = MemoryPlace(dict(place.files))
            if is_good:
                assert (await publish_to(copy, disk)).size == done.size + 1
            else:
                with pytest.raises(TreeForked, match="the log notes"):
                    await publish_to(copy, disk)
                assert not copy.signed


async def test_a_receipt_waits_for_its_checkpoint() -> None:
    async with Rig() as rig:
        place = MemoryPlace()
        with pytest.raises(NotPublished, match="nothing is published"):
            await receipt_of(rig, place, (await rig.queue.enqueue("q", b"")).job_id)
        await publish_to(place, rig.disk)
        (job, *_) = await some_jobs(rig)
        with pytest.raises(NotPublished, match="ends before offset 2"):
            await receipt_of(rig, place, job)
        await publish_to(place, rig.disk)
        assert size_of(place) == len(stored_bases(rig.disk))
        assert (await receipt_of(rig, place, job)).count(b"tlog-proof@v1") == len(await job_offsets(rig, job))


async def test_an_empty_log_has_no_tree() -> None:
    place = MemoryPlace()
    assert (await publish_to(place, MemoryDisk())).size == 0
    assert place.files == {}


async def test_the_tree_begins_at_the_first_batch_of_version_2() -> None:
    disk = MemoryDisk()
    log = await start_log(disk)
    for number in range(5):
        await append_one(log, number)
    await log.close()
    for base in range(3):
        batch = msgpack.unpackb(disk.rows[keys.log_key(base)])
        disk.rows[keys.log_key(base)] = msgpack.packb([1, *batch[1:-1]])
        if base < 4:
            after = msgpack.unpackb(disk.rows[keys.log_key(base + 1)])
            after[2] = blake2b(disk.rows[keys.log_key(base)], digest_size=32).digest()
            disk.rows[keys.log_key(base + 1)] = msgpack.packb(after)
    relinked = decode_batch(3, disk.rows[keys.log_key(3)])
    after = msgpack.unpackb(disk.rows[keys.log_key(4)])
    after[2] = relinked.digest
    disk.rows[keys.log_key(4)] = msgpack.packb(after)
    head = msgpack.unpackb(disk.rows[keys.HEAD_KEY])
    head[1] = decode_batch(4, disk.rows[keys.log_key(4)]).digest
    disk.rows[keys.HEAD_KEY] = msgpack.packb(head)
    await log_of(disk).verify()
    done = await publish_to(MemoryPlace(), disk)
    assert (done.size, done.events, done.next_offset) == (2, 2, 5)
