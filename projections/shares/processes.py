"""A process that does a share of the work: started, given a task, and ended again, whatever happens."""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress
from typing import BinaryIO, Final

from msgspec.msgpack import Decoder

from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.errors import ShareFailed
from ledgerq.eventlog.runtime.process import child_environment
from ledgerq.projections.shares.share import Share, ShareTask

__all__ = ["read_task", "share_elsewhere"]

_PROGRAM: Final = "ledgerq.projections.shares.child"
_LENGTH_BYTES: Final = 4
_decode_task: Final = Decoder(ShareTask).decode
_decode_share: Final = Decoder(Share | None).decode

async def share_elsewhere(task: ShareTask) -> Share | None:
    """The result of a task, by a process of its own, which ends with this call, however that ends.

    None: the log or the store is not as it should be. Raises `ShareFailed` when the process ended early.
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
        return await _result(process, task)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _result(process: Process, task: ShareTask) -> Share | None:
    assert process.stdin is not None
    assert process.stdout is not None
    encoded = pack(task)
    with suppress(ConnectionError):  # of one that has ended, the exit code says more
        process.stdin.write(len(encoded).to_bytes(_LENGTH_BYTES) + encoded)
        await process.stdin.drain()
    output = await process.stdout.read()
    code = await process.wait()
    if code != 0:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise ShareFailed(
            f"{task.url}: a process that did 1 of {task.shares} shares of the work {how}; nothing was written: try "
            "again, or with fewer processes (--jobs 1) if memory is short"
        )
    return _decode_share(output)


def read_task(stream: BinaryIO) -> ShareTask:
    """The task that a process was given on `stream`."""
    return _decode_task(stream.read(int.from_bytes(stream.read(_LENGTH_BYTES))))
