"""The turns of overlapping commits on SlateDB: behind one that was not written, none is written."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from slatedb.uniffi import Db, Error, WriteHandle

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import ClockWentBack
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.slate.binding import PublicLane, SlateBatch
from ledgerq.eventlog.slate.fast_binding import FastLane
from ledgerq.eventlog.slate.native_binding import NativeLane, is_built
from ledgerq.eventlog.slate.opening import open_slate
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.eventlog.store import Anchor
from tests.support.loops import settle

WENT_BACK = "Invalid error: invalid clock tick, must be monotonic. last_tick=`10`, next_tick=`5`"


class Gate:
    """Lets the first write of a lane wait until it is told to fail, as SlateDB does when the clock went back."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.is_first = True

    def meet(self) -> bool:
        """Whether this write is the one that fails."""
        is_first, self.is_first = self.is_first, False
        return is_first


class GatedPublicLane(PublicLane):
    """The public lane; its first write is refused once the gate is opened."""

    gate: Gate

    async def write(self, db: Db, batch: SlateBatch) -> WriteHandle:
        """Like that of the lane."""
        if self.gate.meet():
            await asyncio.to_thread(self.gate.opened.wait)
            raise Error.Invalid(WENT_BACK)
        return await super().write(db, batch)


def gated(kind: type[FastLane]) -> type[FastLane]:
    """A lane of this kind; its first write is refused once the gate is opened."""

    class Gated(kind):  # type: ignore[valid-type,misc]
        gate: Gate

        def write_blocking(self, db: Db, batch: SlateBatch, limit_s: float) -> None:
            if self.gate.meet():
                self.gate.opened.wait()
                raise Error.Invalid(WENT_BACK)
            super().write_blocking(db, batch, limit_s)

    return Gated


LANES = [
    GatedPublicLane,
    gated(FastLane),
    pytest.param(gated(NativeLane), marks=pytest.mark.skipif(not is_built(), reason="it was not built")),
]


async def put(store: SlateStore, number: int) -> None:
    """Commit one row."""
    batch = store.batch()
    batch.put(b"%d" % number, b"value")
    await store.commit(batch, Anchor(number, number + 1, bytes(32), 1, 0))


@pytest.mark.parametrize("lane", LANES)
async def test_none_is_written_behind_a_refused_one(tmp_path: Path, lane: Callable[[], Any]) -> None:
    used = lane()
    used.gate = Gate()
    used.gate.is_first = False
    store = await open_slate(parse_location(str(tmp_path / "s")), clock=SystemClock(), lane=used)
    used.gate.is_first = True
    commits = [asyncio.create_task(put(store, number)) for number in range(2)]
    await settle()
    used.gate.opened.set()
    refused = await asyncio.gather(*commits, return_exceptions=True)
    assert [type(error) for error in refused] == [ClockWentBack] * 2
    assert await store.get_many([b"0", b"1"]) == [None, None]
    await asyncio.gather(put(store, 0), put(store, 1))
    assert await store.get_many([b"0", b"1"]) == [b"value"] * 2
    anchor = await store.read_anchor()
    assert anchor is not None
    assert anchor.next_offset == 2
    await store.close()
