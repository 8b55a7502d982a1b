"""A process that has imported everything, opened nothing, and forks a fresh child for each round of kills.

    python tests/process/kill_zygote.py

A new interpreter with its imports costs half a second, a fork some milliseconds; a child of this one is as good, since
before the fork there is no thread and nothing of SlateDB's runtime. Lines of JSON: {"fork": {...}} is answered with the
child's process id, {"wait": PID} with how it ended, once it has. What a child may be asked to do is in `TASKS`.
"""

import asyncio
import ctypes
import json
import os
import random
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ledgerq.eventlog import keys
from ledgerq.eventlog.anchor import FileAnchor
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import Fenced, LedgerError, StoreNotFound
from ledgerq.eventlog.files.fsync import FileSync
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.eventlog.slate.slate_store import SlateStore
from ledgerq.eventlog.store import Anchor, Batch, Store
from ledgerq.eventlog.stores import open_store
from ledgerq.projections.index_keys import INDEX_PREFIX
from ledgerq.projections.rebuild import rebuild
from ledgerq.worker.options import QueueOptions
from ledgerq.worker.queue import Queue
from tests.process.kill_child import Load, app, open_facts
from tests.process.kills import Facts, open_and_check, read_and_check

__all__ = ["POINTS", "TASKS", "damage_indexes"]

# Everything that time brings about comes about within a round: leases end, retries and late jobs fall due, and what is
# finished is swept.
BRISK: Final = QueueOptions(
    max_attempts=3, backoff_base_s=0.01, lease_s=0.15, keep_done_s=0.4, keep_dead_s=0.6, keep_cancelled_s=0.3
)
# Sorted files are written, and old files removed, while a round lasts.
BUSY_FILES: Final[dict[str, Any]] = {"max_wal_flushes_before_l0_flush": 16, "gc_interval_s": 0.1, "gc_age_s": 0.5}
_PR_SET_PDEATHSIG: Final = 1

POINTS: Final = ("staged", "flushed", "synced", "anchored")
"""The moments of a commit: before it is written; in the store's files; on the disk; noted in the anchor, unreported."""


def die_at(point: str, countdown: int) -> None:
    """Let this process kill itself when it comes to `point` of a commit for the `countdown`-th time."""
    left = [countdown]

    def tick() -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store_commit, file_commit, anchor_write = SlateStore.commit, FileSync.commit, FileAnchor.write

    async def commit(self: SlateStore, batch: Batch, anchor: Anchor) -> None:
        tick()
        await store_commit(self, batch, anchor)

    def flushed(self: FileSync, anchor: Anchor) -> None:
        tick()
        file_commit(self, anchor)

    def synced(self: FileAnchor, anchor: Anchor) -> None:
        tick()
        anchor_write(self, anchor)

    def anchored(self: FileSync, anchor: Anchor) -> None:
        file_commit(self, anchor)
        tick()

    owner, name, made = {
        "staged": (SlateStore, "commit", commit),
        "flushed": (FileSync, "commit", flushed),
        "synced": (FileAnchor, "write", synced),
        "anchored": (FileSync, "commit", anchored),
    }[point]
    setattr(owner, name, made)


def store_options(ask: Mapping[str, Any]) -> StoreOptions:
    """With or without fsync, with few or many files."""
    return StoreOptions(fsync=ask["fsync"], **(BUSY_FILES if ask["busy_files"] else {}), **ask.get("store", {}))


async def load(ask: Mapping[str, Any]) -> None:
    """Mixed load until killed, fenced, or asked by SIGTERM to close."""
    if ask.get("point"):
        die_at(ask["point"], ask["countdown"])
    closing = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, closing.set)
    queue = await Queue.open(
        ask["url"],
        tasks=app,
        default=BRISK,
        ready_window=50,
        store_options=store_options(ask),
        take_over=ask.get("take_over", False),
    )
    try:
        made = Load(queue, open_facts(Path(ask["folder"])), ask["seed"])
        callers = {"producers": ask["callers"], "workers": ask["callers"]} if "callers" in ask else {}
        running = asyncio.create_task(made.run(**callers))
        ending = asyncio.create_task(closing.wait())
        await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        if not ask["at_work"]:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    finally:
        await queue.close()


async def fenced(ask: Mapping[str, Any]) -> None:
    """Mixed load until another one takes over; every part of it must end with `Fenced`, and so must a later call."""
    queue = await Queue.open(ask["url"], tasks=app, default=BRISK, ready_window=50, store_options=store_options(ask))
    made = Load(queue, open_facts(Path(ask["folder"])), ask["seed"])
    work = [made.produce(), made.produce(), made.work("a"), made.work("b"), made.operate()]
    ends = await asyncio.gather(*work, queue.claim("empty", wait=None), return_exceptions=True)
    assert {type(end) for end in ends} == {Fenced}, ends
    with suppress(Fenced):
        await queue.enqueue("q", b"too late")
        raise AssertionError("a fenced queue took a job")
    await queue.close()


async def break_and_rebuild(ask: Mapping[str, Any]) -> None:
    """Damage the indexes in many places, if asked to, and rebuild them."""
    try:
        store = await open_store(ask["url"], clock=SystemClock(), options=store_options(ask), create=False)
    except StoreNotFound:
        return  # every writer so far was killed before there was one
    try:
        if await LogReader(store, clock=SystemClock()).check_format():
            if ask["damage"]:
                await damage_indexes(store, ask["seed"])
            Path(ask["folder"], "damaged").touch()
            await rebuild(store, clock=SystemClock(), actor="a test", reason="killed on purpose")
    finally:
        await store.close()


async def damage_indexes(store: Store, seed: int) -> None:
    """Take away, alter and add rows of the indexes; now and then the secret is gone too."""
    rng = random.Random(seed)
    batch = store.batch()
    if rng.randrange(3) == 0:
        batch.delete(keys.SECRET_KEY)
    async for page in store.scan(INDEX_PREFIX, keys.after_prefix(INDEX_PREFIX)):
        for key, value in page:
            what = rng.randrange(4)
            if what == 0:
                batch.delete(key)
            elif what == 1:
                batch.put(key, value + b"\1")
            elif what == 2:
                batch.put(key[:-1] + b"\xff\xff", value)
    await store.write(batch)
    anchor = await store.read_anchor()
    assert anchor is not None
    await store.sync(anchor)


async def check(ask: Mapping[str, Any]) -> None:
    """Prove what was promised, beside the store, or by opening it; reports what it counted."""
    facts = Facts(Path(ask["folder"]))
    facts.read()
    if ask["opening"]:
        await open_and_check(ask["url"], facts)
    fold, ledger = await read_and_check(ask["url"], facts)
    seen = {
        "events": fold.next_offset,
        "enqueued": len(facts.enqueued),
        "claimed": len(facts.claimed),
        "acked": len(facts.acked),
        "dead": len(facts.dead),
        "cancelled": len(facts.cancelled),
        "swept": len(ledger.once("gone")),
        "requeued": len(ledger.requeued),
        "settled": ledger.settled,
        "expired": ledger.expired,
        "promoted": ledger.promoted,
        "rebuilt": ledger.rebuilt,
        "secrets": ledger.secrets,
        "errors": ledger.errors,
        "writers": ledger.writers,
        "counted": ledger.counted,
        "results": ledger.results,
        "ticked": ledger.ticked,
    }
    Path(ask["folder"], "seen").write_text(json.dumps(seen))


TASKS: Final[Mapping[str, Callable[[Mapping[str, Any]], Awaitable[None]]]] = {
    "load": load,
    "fenced": fenced,
    "rebuild": break_and_rebuild,
    "check": check,
}


def child(ask: Mapping[str, Any]) -> int:
    """Run a forked child; its output goes to a file of its own."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.dup2(os.open(ask["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    try:
        asyncio.run(_awaited(TASKS[ask["task"]](ask)))
    except (AssertionError, LedgerError, Exception):
        traceback.print_exc()
        return 1
    return 0


async def _awaited(work: Awaitable[None]) -> None:
    await work


def main() -> None:
    """Fork and wait by the parent's orders, until the parent is gone."""
    for line in sys.stdin:
        ask = json.loads(line)
        if "fork" in ask:
            assert threading.active_count() == 1
            assert len([*Path("/proc/self/task").iterdir()]) == 1, "a thread would not survive the fork"
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    code = child(ask["fork"])
                finally:
                    sys.stderr.flush()
                    os._exit(code)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(ask["wait"], 0)[1])
        print(answer, flush=True)


if __name__ == "__main__":
    main()
