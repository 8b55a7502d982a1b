"""The store's contract on the public fake."""

import pytest

from ledgerq.eventlog.memory import MemoryDisk, MemoryReader, MemoryStore
from ledgerq.eventlog.store import ReadStore, Store
from tests.support.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    """The contract on `MemoryStore`."""

    @pytest.fixture(autouse=True)
    def _disk(self) -> None:
        self.disk = MemoryDisk()

    async def open(self, *, take_over: bool = False) -> Store:
        """A writer on the test's disk."""
        return MemoryStore(self.disk)

    async def read(self, *, pinned: bool = False) -> ReadStore:
        """A reader of the test's disk."""
        return MemoryReader(self.disk, pinned=pinned)
