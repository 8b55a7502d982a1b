"""A worker that stands still at a moment of its life, to be interrupted there: `ledgerq worker
tests.process.standing_worker:make`.

ODD_MOMENT names the moment; ODD_FOLDER is where the store is, and where `cue` appears when it may go on. At the moment
it writes the line "at MOMENT". Handlers write "started N" and "ended N".
"""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ledgerq import JobContext, Queue, QueueOptions, Worker
from ledgerq.eventlog.codec import KIND_OF
from ledgerq.eventlog.events import Acked, Claimed, WriterClosed

FOLDER = Path(os.environ.get("ODD_FOLDER", "."))
MOMENT = os.environ.get("ODD_MOMENT", "")
POLL_S = 0.005
STUBBORN_S = 0.6
# While such an event is being made durable.
COMMITS = {"claim": Claimed, "settle": Acked, "close": WriterClosed}


def say(*words: str) -> None:
    """One line, in one piece whichever threads print."""
    os.write(1, (" ".join(words) + "\n").encode())


def cue() -> bool:
    """Whether it may go on."""
    return (FOLDER / "cue").exists()


class Waits:
    """A projection that takes its time when the queue opens."""

    name = "waits"

    def restore(self, rows: Mapping[bytes, bytes]) -> None:
        """Wait for the cue, as a large restore would."""
        if MOMENT == "open":
            say("at open")
            while not cue():
                time.sleep(POLL_S)

    def apply(self, transition: Any) -> Mapping[bytes, bytes | None]:
        """Nothing follows."""
        return {}


async def handler(job: JobContext) -> None:
    """Ends at once, or when it may."""
    say("started", job.payload.decode())
    if MOMENT == "async":
        say("at async")
        while not cue():
            await asyncio.sleep(POLL_S)
    if MOMENT == "stubborn":
        say("at stubborn")
        until_s = time.monotonic() + STUBBORN_S
        while time.monotonic() < until_s:
            try:
                await asyncio.sleep(POLL_S)
            except asyncio.CancelledError:
                say("cancelled")
    say("ended", job.payload.decode())


def in_thread(job: JobContext) -> None:
    """Waits where nothing can cancel it."""
    say("started", job.payload.decode())
    say("at thread")
    while not cue():
        time.sleep(POLL_S)
    say("ended", job.payload.decode())


async def make() -> Worker:
    """A worker with three jobs to do, or none."""
    options = QueueOptions(lease_s=600)
    queue = await Queue.open(str(FOLDER / "store"), default=options, projections=[Waits()])
    if MOMENT in COMMITS:
        stand_still(queue, KIND_OF[COMMITS[MOMENT]])
    if MOMENT != "idle":
        await queue.enqueue_many("q", [b"0", b"1", b"2"])
    worker = Worker(queue, concurrency=1, prefetch=0, grace=0.1 if MOMENT == "stubborn" else 60)
    worker.handler("q")(in_thread if MOMENT == "thread" else handler)
    if MOMENT == "idle":
        asyncio.get_running_loop().call_later(0.05, say, "at idle")
    if MOMENT == "close":
        asyncio.get_running_loop().call_later(0.05, worker.stop)
    return worker


def stand_still(queue: Queue, kind: int) -> None:
    """The first commit that holds such an event waits for the cue before it is written."""
    store: Any = queue.log.store
    commit = store.commit
    in_order = asyncio.Lock()  # of the calls, which is that of the writes

    async def held(batch: Any, anchor: Any) -> None:
        flights = queue.log._flights.under_way
        commit_of = next(flight.commit for flight in flights if flight.commit.base_offset == anchor.base_offset)
        async with in_order:
            if kind in commit_of.kinds and not cue():
                say(f"at {MOMENT}")
                while not cue():
                    await asyncio.sleep(POLL_S)
        await commit(batch, anchor)

    store.commit = held


if MOMENT == "import":
    say("at import")
    while not cue():
        time.sleep(POLL_S)
