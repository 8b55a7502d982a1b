"""The program of a process that does a share of the work: a task comes in on stdin, its result goes out on stdout.

It ends as soon as stdin is closed, so it does not outlive the process that started it, whatever ends that one.
"""

import asyncio
import os
import sys
import threading
from typing import BinaryIO

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import LedgerError
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.runtime.heap import give_back_large_blocks
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.shares.processes import read_task, write_message, write_rows
from ledgerq.projections.shares.share import ShareTask, fold_share


def main() -> None:
    """Do the task, and print what it asks for: nothing where the log or the store is not as it should be."""
    give_back_large_blocks()
    task = read_task(sys.stdin.buffer)
    threading.Thread(target=_end_with, args=(sys.stdin.buffer,), daemon=True).start()
    asyncio.run(_work(task, sys.stdout.buffer))
    sys.stdout.flush()
    # SlateDB's threads have nothing more to do.
    os._exit(0)


async def _work(task: ShareTask, stream: BinaryIO) -> None:
    try:
        # This may be a later view than the one that is looked at: the log up to the task's head is the same.
        store = await open_reader(task.url, pinned=True)
        share, fold = await fold_share(LogReader(store, clock=SystemClock()), task)
    except LedgerError:
        # The process that gave the task looks at everything itself then.
        return
    if task.secret is None:
        write_rows(stream, fold.jobs.rows)
    write_message(stream, share)


def _end_with(parent: BinaryIO) -> None:
    parent.read()
    os._exit(1)


if __name__ == "__main__":
    main()
