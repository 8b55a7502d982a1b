"""A process that does a share of the work: started, given a task, and ended again, whatever happens.

Task and result go through pipes as messages: a msgpack value after its length in 4 bytes. Before the result come, where
they are asked for, the rows of the share's jobs, some thousand a message, and then an empty message.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import BinaryIO, Final

from msgspec.msgpack import Decoder

from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.errors import ShareFailed
from ledgerq.eventlog.runtime.process import child_environment
from ledgerq.projections.job_table import Rows
from ledgerq.projections.shares.share import Share, ShareTask

__all__ = ["JobRows", "read_task", "share_elsewhere", "write_message", "write_rows"]

JobRows = list[tuple[bytes, bytes]]
"""Ids of jobs, and their rows."""

_PROGRAM: Final = "ledgerq.projections.shares.child"
_LENGTH_BYTES: Final = 4
_ROWS_AT_ONCE: Final = 2000
_decode_task: Final = Decoder(ShareTask).decode
_decode_share: Final = Decoder(Share).decode
_decode_rows: Final = Decoder(JobRows).decode


async def share_elsewhere(task: ShareTask, take: Callable[[JobRows], None] | None = None) -> Share | None:
    """The result of a task, by a process of its own, which ends with this call, however that ends.

    `take` gets the rows of its jobs, if the task asks for them. None: the log or the store is not as it should be.
    Raises `ShareFailed` when the process ended early.
    """
    process = await asyncio.create_subprocess_exec(
        # -P: no file of the present folder shadows a module.
        *(sys.executable, "-P", "-m", _PROGRAM),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,  # what it could print of the store, this process prints
        env=child_environment(),
        start_new_session=True,  # Ctrl-C is for the process that ends this one
    )
    try:
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # of one that has ended, the exit code says more
            return await _result(process, task, take)
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    if code == 0:
        return None
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise ShareFailed(
        f"{task.url}: a process that did 1 of {task.shares} shares of the work {how}; nothing was written: try again, "
        "or with fewer processes (--jobs 1) if memory is short"
    )


async def _result(process: Process, task: ShareTask, take: Callable[[JobRows], None] | None) -> Share:
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    async def message() -> bytes:
        return await stdout.readexactly(int.from_bytes(await stdout.readexactly(_LENGTH_BYTES)))

    encoded = pack(task)
    stdin.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)
    await stdin.drain()
    if take is not None:
        while rows := await message():
            take(_decode_rows(rows))
    return _decode_share(await message())


def read_task(stream: BinaryIO) -> ShareTask:
    """The task that a process was given on `stream`."""
    return _decode_task(stream.read(int.from_bytes(stream.read(_LENGTH_BYTES))))


def write_message(stream: BinaryIO, value: object) -> None:
    """Write one message."""
    encoded = pack(value)
    stream.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)


def write_rows(stream: BinaryIO, rows: Rows) -> None:
    """Write all rows, then the empty message."""
    ids = iter(rows)
    while some := [*islice(ids, _ROWS_AT_ONCE)]:
        write_message(stream, [(id, rows.get(id)) for id in some])
    stream.write(bytes(_LENGTH_BYTES))
