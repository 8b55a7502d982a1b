"""The check after a read error whether just the block that held the row is damaged.

SlateDB gives the same error for a damaged block and for a damaged index, which costs every row of a file until it is
salvaged.
"""

import asyncio
import re
from typing import Final

from ledgerq.eventlog.errors import LedgerError, RowUnreadable
from ledgerq.eventlog.locations import Location
from ledgerq.eventlog.recovery.sorted_files import damaged_block_of
from ledgerq.eventlog.recovery.store_files import content_of
from ledgerq.eventlog.runtime.commands import salvage_command
from ledgerq.eventlog.slate.objects import Objects
from ledgerq.eventlog.slate.preflight import CAUSE_LIMIT_S

__all__ = ["find_lost_row"]

_WRONG_SUM: Final = re.compile(r"checksum mismatch.*(compacted/[0-9A-Z]{26}\.sst)")


async def find_lost_row(location: Location, key: bytes, error: BaseException) -> RowUnreadable | None:
    """The error for a `key` whose block was damaged where it is kept, if that is what `error` is about, else None."""
    found = _WRONG_SUM.search(str(error))
    if found is None:
        return None
    try:
        if location.is_file:
            data, _ = await asyncio.to_thread(content_of, location.folder / found[1])
        else:
            data = await Objects(location, limit_s=CAUSE_LIMIT_S).get(found[1]) or b""
    except (OSError, LedgerError):
        return None  # a disk or a bucket that can't be reached proves nothing
    damaged = await asyncio.to_thread(damaged_block_of, data, key)
    if damaged is None:
        return None
    block, value = damaged
    where = f"{found[1]}, byte {block.start} to {block.stop}"
    remedy = f"save what is left with: {salvage_command(location.original)}"
    message = f"{location.original}: a block is damaged ({where}), and with it the row {key.hex()}; {remedy}"
    return RowUnreadable(message, where, value)
