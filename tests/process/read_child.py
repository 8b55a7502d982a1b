"""A second process that proves a ledger while another one writes it, and reports where it ended each time.

python tests/process/read_child.py URL ROUNDS
"""

import asyncio
import sys

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.stores import open_reader
from tests.support.ledger_checks import check_ledger

TRIES = 20


async def prove_once(url: str) -> int:
    """Prove one commit's state; returns the offset after it."""
    before = await open_reader(url, pinned=True)
    anchor = await before.read_anchor()
    await before.close()
    reader = await open_reader(url, pinned=True)
    try:
        fold = await check_ledger(reader, anchored=False)
        # What was durable before this view was opened is in it.
        await LogReader(reader, clock=SystemClock()).check_anchor(anchor)
        again = await check_ledger(reader, anchored=False)
        assert again.next_offset == fold.next_offset, "a pinned view moved"
        return fold.next_offset
    finally:
        await reader.close()


async def main(url: str, rounds: int) -> None:
    """Prove it `rounds` times; a view that is not the present one any more is opened again."""
    for _ in range(rounds):
        for _ in range(TRIES):
            try:
                offset = await prove_once(url)
            except StoreUnavailable:
                continue
            print(offset, flush=True)
            break
        else:
            raise SystemExit("no view was stable")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
