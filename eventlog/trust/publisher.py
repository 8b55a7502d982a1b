"""The publisher: it makes the tree of a log, a read-only process beside the writer, and signs its checkpoints.

What stands at the place is read and checked first: the checkpoint is the key's own, the tiles make its root, and its
last leaf is what this log holds there. Only then new leaves follow, and the chain of digests is checked on the way. All
files but the checkpoint are the same whoever writes them and are written first, so a publisher that was killed is run
again. A file that is there already with another content is never replaced: another log was seen when it was written.

The tree begins with the first record batch of version 2: an older one doesn't name each job's event before.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import NO_DIGEST
from ledgerq.eventlog.errors import LogCorrupt, StoreUnavailable, TreeForked
from ledgerq.eventlog.log import LogReader, Progress
from ledgerq.eventlog.read_ahead import read_ahead
from ledgerq.eventlog.side_records import read_secret
from ledgerq.eventlog.store import ReadStore
from ledgerq.eventlog.trust.entries import BatchLeaf, batch_leaf
from ledgerq.eventlog.trust.notes import SigningKey, checkpoint_text
from ledgerq.eventlog.trust.places import CHECKPOINT, Place
from ledgerq.eventlog.trust.published import PublishedTree, encode_entries
from ledgerq.eventlog.trust.tree import ENTRIES, TILE_HASHES, Growth, tile_path
from ledgerq.eventlog.trust.verifier import Refused, TlogEntry, leaf_hash, open_checkpoint, policy_of

__all__ = ["KEY_FILE", "Published", "log_secret", "publish", "recorded_leaf"]

KEY_FILE: Final = "log.vkey"
_LOG_STOP: Final = keys.after_prefix(keys.LOG_PREFIX)


class Published(NamedTuple):
    """The tree as it is published now; `leaves` and `events` are how many are new. An empty one has size 0."""

    size: int
    root: bytes
    next_offset: int
    leaves: int
    events: int


class _Standing(NamedTuple):
    """What stands at the place: the checkpoint's note, its tree, and its last leaf."""

    note: bytes | None
    growth: Growth
    entries: list[bytes]
    last: TlogEntry | None


async def publish(log: LogReader, place: Place, key: SigningKey, *, progress: Progress | None = None) -> Published:
    """Bring the tree at `place` to the log's head, as this reader sees it, and sign it.

    Raises `TreeForked`, and signs nothing, when what stands there is not a beginning of this log's tree or is another
    key's; `LogCorrupt` for a log whose chain is broken; `StoreUnavailable`, also when another publisher was faster.
    """
    async with place.exclusive():
        try:
            standing = await _standing(place, key)
        except Refused as error:
            raise TreeForked(f"what is published at {place.name} is not to be gone on from: {error}") from error
        secret = await log_secret(log.store)
        if standing.last is not None:
            await _check_last(log.store, standing.last, secret, place)
        return await _grow(log, place, key, standing, secret, progress)


async def log_secret(store: ReadStore) -> bytes:
    """The secret from which the salts follow; raises `LogCorrupt` for a store that has none."""
    secret = await read_secret(store)
    if secret is None:
        raise LogCorrupt(0, "the store's secret is missing, so no event's commitment can be made: rebuild-projections")
    return secret


async def recorded_leaf(store: ReadStore, base_offset: int, secret: bytes) -> BatchLeaf | None:
    """The leaf of the record batch at this offset as the store holds it; None where there is none."""
    value = await store.get(keys.log_key(base_offset))
    return None if value is None else batch_leaf(base_offset, value, secret)


async def _standing(place: Place, key: SigningKey) -> _Standing:
    note = await place.get(CHECKPOINT)
    if note is None:
        return _Standing(None, Growth(), [], None)
    checkpoint = open_checkpoint(note, policy_of(key.verifier))
    if checkpoint.size == 0:
        raise Refused("its tree is empty")
    tree = PublishedTree(place, checkpoint)
    growth = Growth(tree.size, await tree.edge())
    if growth.root() != checkpoint.root:
        raise Refused("its tiles don't make the root that was signed")
    entries = await tree.bundle(tree.size // TILE_HASHES) if tree.size % TILE_HASHES else []
    return _Standing(note, growth, entries, await tree.entry(tree.size - 1))


async def _check_last(store: ReadStore, last: TlogEntry, secret: bytes, place: Place) -> None:
    """Raise `TreeForked` unless the log holds the last published leaf: by the chain, all before it too."""
    found = await recorded_leaf(store, last.base_offset, secret)
    if found is not None and found.entry == last:
        return
    where = f"the tree at {place.name} holds a record batch at offset {last.base_offset}"
    if found is None:
        raise TreeForked(
            f"{where}, and the log of {store.location} holds none there: it lost its end or is another one"
        )
    if found.entry.digest == last.digest:
        raise TreeForked(
            f"{where}, whose salts came from another secret than the one of {store.location} now: publish to another "
            "place, under another name; what is published and all receipts stay good"
        )
    raise TreeForked(f"{where}, and the log of {store.location} holds another one there: it was rewritten")


async def _grow(
    log: LogReader, place: Place, key: SigningKey, standing: _Standing, secret: bytes, progress: Progress | None
) -> Published:
    growth, entries, last = standing.growth, list(standing.entries), standing.last
    size, start = growth.size, await _first_offset(log) if last is None else last.next_offset
    head = await log.head()
    full: list[str] = []
    async with aclosing(_values(log.store, start)) as values:
        async for offset, value in values:
            leaf = batch_leaf(offset, value, secret)
            if last is not None and (offset != last.next_offset or leaf.previous != last.digest):
                raise LogCorrupt(offset, "the record batch doesn't follow from the one before it")
            if offset == 0 and leaf.previous != NO_DIGEST:
                raise LogCorrupt(offset, "the record batch doesn't follow from the one before it")
            last = leaf.entry
            encoded = last.encode()
            entries.append(encoded)
            for path, content in growth.append(leaf_hash(encoded)):
                await _put(place, path, content)
                full.append(path)
            if len(entries) == TILE_HASHES:
                full.append(tile_path(ENTRIES, growth.size // TILE_HASHES - 1, TILE_HASHES))
                await _put(place, full[-1], encode_entries(entries))
                entries.clear()
            if progress is not None:
                progress(last.next_offset, head.next_offset)
    if last is None:
        return Published(0, growth.root(), start, 0, 0)
    if (last.next_offset, last.digest) != (head.next_offset, head.digest):
        raise LogCorrupt(last.next_offset, "the log doesn't end where its head is")
    if growth.size > size:
        for path, content in growth.partial():
            await _put(place, path, content)
        if entries:
            await _put(place, tile_path(ENTRIES, growth.size // TILE_HASHES, len(entries)), encode_entries(entries))
        await _put(place, KEY_FILE, f"{key.verifier}\n".encode())
        await place.sync()
        note = key.sign(checkpoint_text(key.verifier.name, growth.size, growth.root()))
        if not await place.replace(CHECKPOINT, note, standing.note):
            raise StoreUnavailable(f"another publisher has written to {place.name} meanwhile: try again")
        for path in full:
            await place.remove_folder(f"{path}.p")
    return Published(growth.size, growth.root(), last.next_offset, growth.size - size, last.next_offset - start)


async def _put(place: Place, path: str, content: bytes) -> None:
    if not await place.create(path, content) and await place.get(path) != content:
        raise TreeForked(
            f"{path} at {place.name} has another content than the one that follows from this log: it was written when "
            "the log was another one, or for another key; nothing was signed"
        )


async def _values(store: ReadStore, start: int) -> AsyncGenerator[tuple[int, bytes], None]:
    async with aclosing(read_ahead(store.scan(keys.log_key(start), _LOG_STOP))) as pages:
        async for rows in pages:
            for key, value in rows:
                yield keys.offset_of(key), value


async def _first_offset(log: LogReader) -> int:
    """Where the tree begins: the base offset of the first record batch of version 2, or the log's end."""
    low, high = 0, (await log.head()).next_offset
    while low < high:
        batch = await log.batch_at((low + high) // 2)
        if batch is None:
            raise LogCorrupt(low, "a record batch is missing")
        if batch.distances is None:
            low = batch.next_offset
        else:
            high = batch.base_offset
    return low
