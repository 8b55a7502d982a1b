"""Reading ahead: the next page of a scan is read while the caller works on the one before it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from ledgerq.eventlog.store import Row

__all__ = ["read_ahead"]


async def read_ahead(pages: AsyncIterator[list[Row]]) -> AsyncGenerator[list[Row], None]:
    """The same pages, for scans that are read to their end. It holds one page more: close it when left early."""
    following = asyncio.create_task(_next(pages))
    try:
        while (page := await following) is not None:
            following = asyncio.create_task(_next(pages))
            # Its turn, in which it begins to read.
            await asyncio.sleep(0)
            yield page
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


async def _next(pages: AsyncIterator[list[Row]]) -> list[Row] | None:
    return await anext(pages, None)
