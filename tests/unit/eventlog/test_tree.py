"""The tree against RFC 6962 as it is written: roots, inclusion and consistency proofs, tiles."""

from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledgerq.eventlog.trust.tree import Growth, TileReader, check_consistency, inclusion_path, root_of, tile_path
from ledgerq.eventlog.trust.verifier import Refused, node_hash, root_of_proof


def leaf(number: int) -> bytes:
    """The hash of a leaf that differs from the others."""
    return sha256(b"\0" + number.to_bytes(4)).digest()


def naive_root(hashes: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1."""
    if len(hashes) < 2:
        return hashes[0] if hashes else sha256(b"").digest()
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    return sha256(b"\1" + naive_root(hashes[:k]) + naive_root(hashes[k:])).digest()


def naive_path(m: int, hashes: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1."""
    if len(hashes) < 2:
        return []
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    if m < k:
        return [*naive_path(m, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(m - k, hashes[k:]), naive_root(hashes[:k])]


def naive_subproof(m: int, hashes: list[bytes], *, is_whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2."""
    if m == len(hashes):
        return [] if is_whole else [naive_root(hashes)]
    k = 1
    while 2 * k < len(hashes):
        k *= 2
    if m <= k:
        return [*naive_subproof(m, hashes[:k], is_whole=is_whole), naive_root(hashes[k:])]
    return [*naive_subproof(m - k, hashes[k:], is_whole=False), naive_root(hashes[:k])]


def grown(sizes: list[int]) -> tuple[dict[str, bytes], Growth]:
    """The tiles of a tree that grew to each of these sizes in turn, begun anew from its tiles each time."""
    tiles: dict[str, bytes] = {}
    growth = Growth()
    for size in sizes:
        edge = edge_of(tiles, growth.size)
        growth = Growth(growth.size, edge)
        while growth.size < size:
            tiles.update(growth.append(leaf(growth.size)))
        tiles.update(growth.partial())
    return tiles, growth


def edge_of(tiles: dict[str, bytes], size: int) -> list[bytes]:
    """The content of the partial tiles."""
    edge = []
    level = 0
    while count := size >> 8 * level:
        edge.append(tiles[tile_path(level, count // 256, count % 256)] if count % 256 else b"")
        level += 1
    return edge


def reader(tiles: dict[str, bytes], size: int) -> TileReader:
    """A reader of tiles in memory."""

    async def read(path: str) -> bytes | None:
        return tiles.get(path)

    return TileReader(read, size)


async def test_each_root_and_each_proof_of_small_trees() -> None:
    for size in range(1, 26):
        hashes = [leaf(number) for number in range(size)]
        root = naive_root(hashes)
        tiles, growth = grown([size])
        tree = reader(tiles, size)
        assert growth.root() == root_of(hashes) == await tree.root() == root
        for index in range(size):
            path = naive_path(index, hashes)
            assert inclusion_path(hashes, index) == await tree.inclusion(index) == path
            assert root_of_proof(hashes[index], index, size, path) == root
            assert await tree.consistency(index + 1) == naive_subproof(index + 1, hashes, is_whole=True)
            old, proof = naive_root(hashes[: index + 1]), await tree.consistency(index + 1)
            assert await tree.root(index + 1) == old
            check_consistency(index + 1, old, size, root, proof)
            for wrong in ([*proof, root], proof[:-1], [*proof[:-1], bytes(32)], proof[1:]):
                if wrong != proof:
                    with pytest.raises(Refused):
                        check_consistency(index + 1, old, size, root, wrong)
            for roots in ((bytes(32), root), (old, bytes(32))):
                with pytest.raises(Refused):
                    check_consistency(index + 1, roots[0], size, roots[1], proof)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 1200), min_size=1, max_size=4).map(sorted), st.data())
async def test_a_tree_that_grew_in_steps_is_the_same(sizes: list[int], data: st.DataObject) -> None:
    hashes = [leaf(number) for number in range(sizes[-1])]
    tiles, growth = grown(sizes)
    root = naive_root(hashes)
    tree = reader(tiles, sizes[-1])
    assert growth.root() == await tree.root() == root
    index = data.draw(st.integers(0, sizes[-1] - 1))
    assert await tree.inclusion(index) == naive_path(index, hashes)
    assert await tree.consistency(index + 1) == naive_subproof(index + 1, hashes, is_whole=True)
    # An older tree is read from what is there now, also where full tiles took the place of partial ones.
    for path in [path for path in tiles if ".p/" in path and path.partition(".p/")[0] in tiles]:
        del tiles[path]
    assert await reader(tiles, sizes[0]).root() == naive_root(hashes[: sizes[0]])


async def test_three_levels_of_tiles() -> None:
    size = 65_536 + 300
    tiles, growth = grown([65_535, size])
    assert tile_path(0, 1_234_067, 256) == "tile/0/x001/x234/067"
    assert [len(tiles[path]) // 32 for path in ("tile/0/257.p/44", "tile/1/001.p/1", "tile/2/000.p/1")] == [44, 1, 1]
    tree = reader(tiles, size)
    path = await tree.inclusion(65_540)
    assert root_of_proof(leaf(65_540), 65_540, size, path) == growth.root() == await tree.root()
    assert await tree.consistency(65_536) == [await tree._over(65_536, size)]


async def test_what_is_no_proof_is_refused() -> None:
    hashes = [leaf(number) for number in range(11)]
    path = inclusion_path(hashes, 6)
    for wrong in (path[:-1], [*path, path[0]]):
        with pytest.raises(Refused, match="too"):
            root_of_proof(hashes[6], 6, 11, wrong)
    with pytest.raises(Refused, match="not in a tree"):
        root_of_proof(hashes[6], 11, 11, path)
    assert root_of_proof(hashes[6], 5, 11, path) != naive_root(hashes)
    tiles, _ = grown([300])
    for name in list(tiles):
        for what in ({**tiles, name: tiles[name][:-1]}, {path: tiles[path] for path in tiles if path != name}):
            with pytest.raises(Refused, match="hashes are due" if name in what else "is missing"):
                await (read := reader(what, 300)).root()
                await read.inclusion(3)
    assert node_hash(b"a", b"b") == sha256(b"\1ab").digest()
