"""Enqueue one large payload and read it back, and print what that took: `python -m ... FOLDER MIB`.

With 1024 MiB by hand; the proof has 256.
"""

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator

from ledgerq.worker.queue import Queue

_MIB = 1024 * 1024


async def zeros(size_mib: int) -> AsyncIterator[bytes]:
    """So many MiB."""
    piece = bytes(_MIB)
    for _ in range(size_mib):
        yield piece


def peak_mib() -> float:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


async def main(folder: str, size_mib: int) -> None:
    """Go once through it with a few MiB, which brings in all code and buffers, then with all."""
    async with Queue.open(folder) as queue:
        for mib in (8, size_mib):
            before_mib, begun_s, cpu_s = peak_mib(), time.perf_counter(), time.process_time()
            added = await queue.enqueue("large", zeros(mib))
            written_s = time.perf_counter() - begun_s
            read_bytes = 0
            async for piece in queue.open_payload(added.job_id):
                read_bytes += len(piece)
            took_s = time.perf_counter() - begun_s
    told = {
        "read_mib": read_bytes / _MIB,
        "grown_mib": peak_mib() - before_mib,
        "peak_mib": peak_mib(),
        "write_s": written_s,
        "read_s": took_s - written_s,
        "cpu_s": time.process_time() - cpu_s,
    }
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
