"""A process that opens a store for writing, reports the result, and follows orders until its end.

    python tests/store/writer_child.py URL [take-over] [wait=SECONDS] [die=POINT] [fork]

Says "open", or the error as JSON. Each line on stdin is a command: "enqueue" is answered with the job's id or the name
of the error, "close" with "closed". With "fork" it forks once it has opened, and the child, which says its process id,
does nothing until it is killed. POINT: where it kills itself while it takes a store over (see `die_at`).
"""

import asyncio
import json
import os
import signal
import sys

from ledgerq.eventlog.errors import LedgerError, StoreInUse
from ledgerq.eventlog.single_writer.lock import FileHold
from ledgerq.eventlog.slate import opening
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.worker.queue import Queue

POINTS = ("held", "fenced", "replaced", "started")
"""Before SlateDB opens; when it has; when the lock is in its place; before the queue's first commit."""


def die_at(point: str) -> None:
    """Let this process kill itself at a point of its opening."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    opened = FileHold.opened

    def replaced(self: FileHold) -> None:
        opened(self)
        die()

    async def started(self: SlateStore) -> None:
        die()

    owner, name, made = {
        "held": (opening, "DbBuilder", die),
        "fenced": (FileHold, "opened", die),
        "replaced": (FileHold, "opened", replaced),
        "started": (SlateStore, "started", started),
    }[point]
    setattr(owner, name, made)


async def main(url: str, *words: str) -> None:
    """Open, and obey."""
    wait_s = next((float(word[5:]) for word in words if word.startswith("wait=")), 0.0)
    for word in words:
        if word.startswith("die="):
            die_at(word[4:])
    try:
        queue = await Queue.open(url, take_over="take-over" in words, wait=wait_s)
    except StoreInUse as error:
        say(json.dumps({"error": "StoreInUse", "pid": error.pid, "host": error.host}))
        return
    except LedgerError as error:
        say(json.dumps({"error": type(error).__name__, "text": str(error)}))
        return
    if "fork" in words and os.fork() == 0:
        say(str(os.getpid()))
        nothing_fd = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing_fd, 0)
        os.dup2(nothing_fd, 1)
        signal.pause()
    say("open")
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if command == "close":
            await queue.close()
            say("closed")
        else:
            try:
                say((await queue.enqueue("q", b"x")).job_id)
            except LedgerError as error:
                say(type(error).__name__)


def say(text: str) -> None:
    """Print one line to the parent."""
    # In one piece: a forked child writes to the same pipe.
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
