"""The Merkle tree of RFC 6962, and its tiles as c2sp.org/tlog-tiles lays them out: pure, for the hashes of any leaves.

A tile holds 256 hashes of one level in eight; the hashes between are made anew. `Growth` appends leaves and yields the
tiles that fill; `TileReader` makes roots and proofs from tiles.
"""

from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Final

from ledgerq.eventlog.trust.verifier import Refused, node_hash

__all__ = ["ENTRIES", "Growth", "TileReader", "check_consistency", "inclusion_path", "root_of", "tile_path"]

TILE_HASHES: Final = 256
_TILE_LEVELS: Final = 8
HASH_BYTES: Final = 32
EMPTY_ROOT: Final = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
ENTRIES: Final = "entries"
"""The level of the bundles of entries, in the paths of tiles."""


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over these hashes of leaves."""
    level = list(hashes)
    while len(level) > 1:
        level = _above(level)
    return level[0] if level else EMPTY_ROOT


def inclusion_path(hashes: Sequence[bytes], index: int) -> list[bytes]:
    """The proof that the leaf `index` is in the tree over these hashes."""
    level, path = list(hashes), []
    while len(level) > 1:
        if (other := index ^ 1) < len(level):
            path.append(level[other])
        level, index = _above(level), index >> 1
    return path


def _above(level: Sequence[bytes]) -> list[bytes]:
    # A last one without a neighbour goes up as it is: so the halves are cut at powers of two, as RFC 6962 has it.
    # And as `node_hash` has it, without the cost of its call.
    pairs = [sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
    return [*pairs, level[-1]] if len(level) & 1 else pairs


def tile_path(level: int | str, index: int, width: int) -> str:
    """The path of a tile, or of a bundle of entries (level `ENTRIES`), with so many hashes or entries."""
    digits = [f"{index % 1000:03}"]
    while index := index // 1000:
        digits.insert(0, f"x{index % 1000:03}")
    path = f"tile/{level}/{'/'.join(digits)}"
    return path if width == TILE_HASHES else f"{path}.p/{width}"


def check_consistency(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> None:
    """Raise `Refused` unless the proof shows that the tree of `old` leaves is the beginning of the one of `size`."""
    if any(len(one) != HASH_BYTES for one in proof):
        raise Refused("the consistency proof holds what is no hash")
    if not 0 <= old <= size:
        raise Refused(f"a tree of {size} leaves does not begin with one of {old}")
    if old in (0, size):
        if proof or (old == size and old_root != root):
            raise Refused("two trees of one size differ" if not proof else "the consistency proof is too long")
        return
    at, last, path = old - 1, size - 1, list(proof)
    while at & 1:
        at, last = at >> 1, last >> 1
    first = old_root if not old & (old - 1) else (path.pop(0) if path else b"")
    before = after = first
    for other in path:
        if last == 0:
            raise Refused("the consistency proof is too long")
        if at & 1 or at == last:
            before, after = node_hash(other, before), node_hash(other, after)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            after = node_hash(after, other)
        at, last = at >> 1, last >> 1
    if last or (before, after) != (old_root, root):
        raise Refused("the consistency proof does not lead from the one tree to the other")


class Growth:
    """The right edge of a tree that grows: of each level of tiles the hashes of the tile that is not full yet."""

    def __init__(self, size: int = 0, edge: Sequence[bytes] = ()) -> None:
        """Begin with a tree of `size` leaves: `edge` holds the content of its partial tile at each level."""
        self.size = size
        self._edge = [[tile[at : at + HASH_BYTES] for at in range(0, len(tile), HASH_BYTES)] for tile in edge]
        self._old = size

    def append(self, leaf: bytes) -> list[tuple[str, bytes]]:
        """Add the hash of a leaf; returns the path and content of each tile that is full now."""
        self.size += 1
        full: list[tuple[str, bytes]] = []
        level = 0
        while True:
            if level == len(self._edge):
                self._edge.append([])
            hashes = self._edge[level]
            hashes.append(leaf)
            if len(hashes) < TILE_HASHES:
                return full
            index = (self.size >> _TILE_LEVELS * (level + 1)) - 1
            full.append((tile_path(level, index, TILE_HASHES), b"".join(hashes)))
            leaf, self._edge[level] = root_of(hashes), []
            level += 1

    def partial(self) -> list[tuple[str, bytes]]:
        """The path and content of each tile that is not full, and was another one when this began."""
        found = []
        for level, hashes in enumerate(self._edge):
            count = self.size >> _TILE_LEVELS * level
            if hashes and count != self._old >> _TILE_LEVELS * level:
                found.append((tile_path(level, count // TILE_HASHES, len(hashes)), b"".join(hashes)))
        return found

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        peaks: list[bytes] = []
        for hashes in reversed(self._edge):
            at = 0
            for bit in reversed(range(_TILE_LEVELS)):
                if len(hashes) & 1 << bit:
                    peaks.append(root_of(hashes[at : at + (1 << bit)]))
                    at += 1 << bit
        if not peaks:
            return EMPTY_ROOT
        found = peaks.pop()
        while peaks:
            found = node_hash(peaks.pop(), found)
        return found


class TileReader:
    """Roots and proofs of a tree of `size` leaves from its tiles, each of which is read once."""

    def __init__(self, read: Callable[[str], Awaitable[bytes | None]], size: int) -> None:
        """`read` gives the content of a path, None where there is nothing."""
        self._read = read
        self.size = size
        self._tiles: dict[tuple[int | str, int], bytes] = {}

    async def tile(self, level: int | str, index: int) -> bytes:
        """The tile as it is in this tree, without later leaves; raises `Refused` when it is missing or short."""
        if (level, index) not in self._tiles:
            count = self.size >> _TILE_LEVELS * (0 if isinstance(level, str) else level)
            width = min(TILE_HASHES, count - index * TILE_HASHES)
            path = tile_path(level, index, width)
            content = await self._read(path)
            if content is None and width < TILE_HASHES:  # the full one has taken its place
                content = await self._read(tile_path(level, index, TILE_HASHES))
            if content is None:
                raise Refused(f"{path} is missing among the published files")
            if level != ENTRIES:
                if len(content) < width * HASH_BYTES or len(content) % HASH_BYTES:
                    raise Refused(f"{path} has {len(content)} bytes, and {width} hashes are due")
                content = content[: width * HASH_BYTES]
            self._tiles[level, index] = content
        return self._tiles[level, index]

    async def edge(self) -> list[bytes]:
        """The content of the partial tile of each level, for `Growth`."""
        found = []
        level = 0
        while count := self.size >> _TILE_LEVELS * level:
            found.append(await self.tile(level, count // TILE_HASHES) if count % TILE_HASHES else b"")
            level += 1
        return found

    async def root(self, size: int | None = None) -> bytes:
        """The root of the tree, or of the one that it was at `size` leaves."""
        return await self._over(0, self.size if size is None else size)

    async def inclusion(self, index: int) -> list[bytes]:
        """The proof that leaf `index` is in the tree."""
        low, high, path = 0, self.size, []
        while high - low > 1:
            middle = low + _cut(high - low)
            if index < middle:
                path.append(await self._over(middle, high))
                high = middle
            else:
                path.append(await self._over(low, middle))
                low = middle
        return path[::-1]

    async def consistency(self, old: int) -> list[bytes]:
        """The proof that this tree has the one of its first `old` leaves as its beginning; for `0 < old <= size`."""
        low, high, path, is_whole = 0, self.size, [], True
        while old != high:
            middle = low + _cut(high - low)
            if old <= middle:
                path.append(await self._over(middle, high))
                high = middle
            else:
                path.append(await self._over(low, middle))
                low, is_whole = middle, False
        return [*([] if is_whole else [await self._over(low, high)]), *path[::-1]]

    async def _over(self, low: int, high: int) -> bytes:
        count = high - low
        if count == 0:
            return EMPTY_ROOT
        if count & (count - 1):
            middle = low + _cut(count)
            return node_hash(await self._over(low, middle), await self._over(middle, high))
        bits = count.bit_length() - 1
        level = bits // _TILE_LEVELS
        first, span = low >> _TILE_LEVELS * level, 1 << bits % _TILE_LEVELS
        tile = await self.tile(level, first // TILE_HASHES)
        at = first % TILE_HASHES * HASH_BYTES
        return root_of([tile[i : i + HASH_BYTES] for i in range(at, at + span * HASH_BYTES, HASH_BYTES)])


def _cut(count: int) -> int:
    """The largest power of two below `count`, where RFC 6962 cuts a tree in two."""
    return 1 << (count - 1).bit_length() - 1
