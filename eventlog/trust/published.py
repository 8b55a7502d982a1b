"""The published tree as others read it: its checkpoint, its entries, and the leaf that holds an offset."""

from typing import Final

from ledgerq.eventlog.trust.places import Place
from ledgerq.eventlog.trust.tree import ENTRIES, TILE_HASHES, TileReader
from ledgerq.eventlog.trust.verifier import Checkpoint, Refused, TlogEntry, leaf_hash, root_of_proof

__all__ = ["PublishedTree", "encode_entries"]

ENTRY_BYTES: Final = 81
_STEP_BYTES: Final = 2 + ENTRY_BYTES


def encode_entries(entries: list[bytes]) -> bytes:
    """A bundle of entries: each after its length."""
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


class PublishedTree(TileReader):
    """The tree of a checkpoint in a place. What it reads there is not trusted: it is compared with the signed root."""

    def __init__(self, place: Place, checkpoint: Checkpoint) -> None:
        """Read the tree of this checkpoint from `place`, when it is asked; raises `Refused` for an empty one."""
        if checkpoint.size == 0:
            raise Refused("its tree is empty")
        super().__init__(place.get, checkpoint.size)
        self._root = checkpoint.root

    async def bundle(self, index: int) -> list[bytes]:
        """The encoded entries of a bundle, as many as are in this tree; raises `Refused`."""
        content = await self.tile(ENTRIES, index)
        width = min(TILE_HASHES, self.size - index * TILE_HASHES)
        entries = [content[at + 2 : at + _STEP_BYTES] for at in range(0, width * _STEP_BYTES, _STEP_BYTES)]
        if content[: width * _STEP_BYTES] != encode_entries(entries) or len(entries[-1]) != ENTRY_BYTES:
            raise Refused(f"the published bundle {index} of entries is damaged")
        return entries

    async def entry(self, index: int) -> TlogEntry:
        """The entry of a leaf, proven to be in the tree that was signed; raises `Refused`."""
        encoded = (await self.bundle(index // TILE_HASHES))[index % TILE_HASHES]
        if root_of_proof(leaf_hash(encoded), index, self.size, await self.inclusion(index)) != self._root:
            raise Refused(f"the published entry {index} is not in the tree that was signed")
        return TlogEntry.decode(encoded)

    async def find(self, offset: int) -> int | None:
        """The number of the leaf whose record batch holds `offset`; None where the tree begins or ends before it."""
        low, high = 0, (self.size - 1) // TILE_HASHES
        while low < high:
            middle = (low + high + 1) // 2
            first = TlogEntry.decode((await self.bundle(middle))[0])
            low, high = (middle, high) if first.base_offset <= offset else (low, middle - 1)
        for number, encoded in enumerate(await self.bundle(low)):
            found = TlogEntry.decode(encoded)
            if found.base_offset <= offset < found.next_offset:
                return low * TILE_HASHES + number
        return None
