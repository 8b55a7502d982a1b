"""The publisher: it makes the tree of a log, a read-only process beside the writer, and signs its checkpoints.

What stands at the place is read and checked first: the checkpoint is the key's own, the tiles make its root, and its
last leaf is what this log holds there. Only then new leaves follow, and the chain of digests is checked on the way. All
files but the checkpoint are the same whoever writes them and are written first, so a publisher that was killed is run
again. A file that is there already with another content is never replaced: another log was seen when it was written.
What the key signed last is kept beside the key, and the log may note what was signed (`Checkpointed`): nothing is
signed that does not go on from both, whatever stands there.

The tree begins with the first record batch of version 2: an older one doesn't name each job's event before.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, NamedTuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import NO_DIGEST, decode_batch
from ledgerq.eventlog.errors import InvalidArgument, LogCorrupt, StoreUnavailable, TreeForked
from ledgerq.eventlog.events import Checkpointed
from ledgerq.eventlog.log import LogReader, Progress
from ledgerq.eventlog.read_ahead import read_ahead
from ledgerq.eventlog.side_records import read_secret
from ledgerq.eventlog.store import ReadStore
from ledgerq.eventlog.trust.entries import BatchLeaf, batch_leaf
from ledgerq.eventlog.trust.notes import SigningKey, checkpoint_text
from ledgerq.eventlog.trust.places import CHECKPOINT, Place
from ledgerq.eventlog.trust.published import PublishedTree, encode_entries
from ledgerq.eventlog.trust.tree import ENTRIES, TILE_HASHES, Growth, TileReader, tile_path
from ledgerq.eventlog.trust.verifier import (
    LOG_KEY,
    Checkpoint,
    Refused,
    TlogEntry,
    leaf_hash,
    open_checkpoint,
    policy_of,
)

__all__ = ["KEY_FILE", "Published", "log_secret", "publish", "recorded_leaf"]

KEY_FILE: Final = "log.vkey"
Remember = Callable[[bytes], Awaitable[None]]
_LOG_STOP: Final = keys.after_prefix(keys.LOG_PREFIX)


class Published(NamedTuple):
    """The tree as it is published now; `leaves` and `events`: how many are new. An empty one has no note."""

    note: bytes | None
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


async def publish(
    log: LogReader,
    place: Place,
    key: SigningKey,
    *,
    signed: bytes | None = None,
    remember: Remember | None = None,
    progress: Progress | None = None,
) -> Published:
    """Bring the tree at `place` to the log's head, as this reader sees it, and sign it.

    `signed`: the note that this key signed last, here or elsewhere. `remember` keeps the one that is signed now: it is
    called before anybody can see that, so a publisher that is killed has not forgotten what it signed.

    Raises `TreeForked`, and signs nothing, when what was signed or what stands there is not a beginning of this log's
    tree or is another key's; `LogCorrupt` for a log whose chain is broken; `StoreUnavailable`, also when another
    publisher was faster.
    """
    if key.verifier.kind != LOG_KEY:
        raise InvalidArgument(f"{key.verifier.name} is the key of a witness, which signs no log's tree")
    async with place.exclusive():
        try:
            standing = await _standing(place, key)
            last_signed = None if signed is None else open_checkpoint(signed, policy_of(key.verifier))
        except Refused as error:
            raise TreeForked(f"what is published at {place.name} is not to be gone on from: {error}") from error
        start = await _first_offset(log) if standing.last is None else standing.last.next_offset
        if standing.last is None and start == await log.end():
            # Nothing is of version 2 yet, and a store of an older format has no secret either.
            empty = Published(None, 0, standing.growth.root(), start, 0, 0)
            await _check_signed(place, empty, last_signed)
            return empty
        secret = await log_secret(log.store)
        if standing.last is not None:
            await _check_last(log.store, standing.last, secret, place)
        noted: list[Checkpointed] = []
        grown = await _grow(log, place, standing, start, secret, noted, progress)
        await _check_signed(place, grown, last_signed)
        await _check_noted(place, grown, [one for one in noted if one.origin == key.verifier.name])
        if not grown.leaves:
            return grown._replace(note=standing.note)
        return await _sign(place, key, grown, standing.note, remember)


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
    log: LogReader,
    place: Place,
    standing: _Standing,
    start: int,
    secret: bytes,
    noted: list[Checkpointed],
    progress: Progress | None,
) -> Published:
    """Write the tiles of all that is new, and gather in `noted` what the log notes there; nothing is signed yet."""
    growth, entries, last = standing.growth, list(standing.entries), standing.last
    size = growth.size
    head = await log.head()
    async with aclosing(_values(log.store, start)) as values:
        async for offset, value in values:
            leaf = batch_leaf(offset, value, secret)
            if last is not None and (offset != last.next_offset or leaf.previous != last.digest):
                raise LogCorrupt(offset, "the record batch doesn't follow from the one before it")
            if offset == 0 and leaf.previous != NO_DIGEST:
                raise LogCorrupt(offset, "the record batch doesn't follow from the one before it")
            if leaf.has_notes:
                noted += [event for event in decode_batch(offset, value).events if isinstance(event, Checkpointed)]
            last = leaf.entry
            encoded = last.encode()
            entries.append(encoded)
            for path, content in growth.append(leaf_hash(encoded)):
                await _put(place, path, content)
            if len(entries) == TILE_HASHES:
                path = tile_path(ENTRIES, growth.size // TILE_HASHES - 1, TILE_HASHES)
                await _put(place, path, encode_entries(entries))
                entries.clear()
            if progress is not None:
                progress(last.next_offset, head.next_offset)
    if last is None:
        return Published(None, 0, growth.root(), start, 0, 0)
    if (last.next_offset, last.digest) != (head.next_offset, head.digest):
        raise LogCorrupt(last.next_offset, "the log doesn't end where its head is")
    if growth.size > size:
        for path, content in growth.partial():
            await _put(place, path, content)
        if entries:
            await _put(place, tile_path(ENTRIES, growth.size // TILE_HASHES, len(entries)), encode_entries(entries))
    return Published(None, growth.size, growth.root(), last.next_offset, growth.size - size, last.next_offset - start)


async def _check_signed(place: Place, grown: Published, signed: Checkpoint | None) -> None:
    """Raise `TreeForked` unless the tree has the one that was signed last as its beginning."""
    if signed is None:
        return
    what = f"this key has signed a tree of {signed.origin} with {signed.size} leaves"
    if grown.size < signed.size:
        raise TreeForked(f"{what}, and the one at {place.name} has {grown.size}: store or tree is an older copy")
    if await TileReader(place.get, grown.size).root(signed.size) != signed.root:
        raise TreeForked(f"{what}, and the one at {place.name} begins with others: the log was rewritten")


async def _check_noted(place: Place, grown: Published, noted: list[Checkpointed]) -> None:
    """Raise `TreeForked` unless the checkpoints that the log notes are of this tree."""
    tree = TileReader(place.get, grown.size)
    for one in noted:
        if one.tree_size > grown.size or await tree.root(one.tree_size) != one.root:
            raise TreeForked(
                f"the log notes that the key of {one.origin} signed a tree with {one.tree_size} leaves, and it is no "
                f"beginning of the one at {place.name}: the key was used for another log, or this one was rewritten"
            )


async def _sign(
    place: Place, key: SigningKey, grown: Published, over: bytes | None, remember: Remember | None
) -> Published:
    await _put(place, KEY_FILE, f"{key.verifier}\n".encode())
    await place.sync()
    note = key.sign(checkpoint_text(key.verifier.name, grown.size, grown.root))
    if remember is not None:
        await remember(note)
    if not await place.replace(CHECKPOINT, note, over):
        raise StoreUnavailable(f"another publisher has written to {place.name} meanwhile: try again")
    # Where the edge was, a tile may be full now, and its partial ones are not needed any more.
    old, bits = grown.size - grown.leaves, 8
    while (index := old >> bits) < grown.size >> bits:
        for level in (ENTRIES, 0) if bits == 8 else (bits // 8 - 1,):
            await place.remove_folder(f"{tile_path(level, index, TILE_HASHES)}.p")
        bits += 8
    return grown._replace(note=note)


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
