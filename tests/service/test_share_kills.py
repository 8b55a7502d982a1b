"""A shared store whose writer is killed again and again, with a ledger of what was promised outside of it."""

import asyncio
import json
import multiprocessing
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledgerq import Queue
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.events import Acked, Enqueued
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.audit import audit
from tests.service import share_child

LIMIT_S = 120.0
KILLS = 3
ROLES = ["produce"] * 4 + ["work"] * 2
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([share_child.__name__])


class Member:
    """One process, and what it has reported."""

    def __init__(self, crowd: "Crowd", role: str, name: str) -> None:
        self.role = role
        self.count = 0
        self._crowd = crowd
        self.connection, its_own = CONTEXT.Pipe()
        self.process = CONTEXT.Process(
            target=share_child.run, args=(str(crowd.folder), role, name, its_own), daemon=True
        )
        self.process.start()
        its_own.close()
        asyncio.get_running_loop().add_reader(self.connection.fileno(), self._read)

    def _read(self) -> None:
        try:
            while self.connection.poll():
                kind, payload, job_id = self.connection.recv()
                if kind != "open":
                    self.count += 1
                    self._crowd.ids[payload].add(job_id)
                    (self._crowd.promised if kind == "promised" else self._crowd.tried)[job_id] += 1
        except (EOFError, ConnectionResetError):
            asyncio.get_running_loop().remove_reader(self.connection.fileno())
        self._crowd.changed.set()

    async def ended(self) -> int | None:
        """Wait for its end, and for all that it has reported; its exit code."""
        await asyncio.to_thread(self.process.join)
        self._read()
        return self.process.exitcode


class Crowd:
    """The processes of one shared store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.members: list[Member] = []
        self.started = 0
        self.promised: Counter[str] = Counter()
        self.tried: Counter[str] = Counter()
        self.ids: defaultdict[str, set[str]] = defaultdict(set)
        self.changed = asyncio.Event()

    def start(self, role: str) -> None:
        """Start one more."""
        self.started += 1
        self.members.append(Member(self, role, f"{role}{self.started}"))

    async def until_each_has(self, more: int) -> None:
        """Wait until each of them has so many more reports."""
        begun = {member: member.count for member in self.members}
        while any(member.count < count + more for member, count in begun.items()):
            self.changed.clear()
            await self.changed.wait()
            assert all(member.process.is_alive() for member in self.members)

    def writer(self) -> Member:
        """The one that is the store's writer by its lock's file."""
        pid = json.loads((self.folder / "writer").read_text())["pid"]
        return next(member for member in self.members if member.process.pid == pid)

    async def kill(self, member: Member) -> None:
        """Kill one, and start another one in its place."""
        member.process.kill()
        await member.ended()
        self.members.remove(member)
        self.start(member.role)

    async def end(self, role: str) -> None:
        """Let those of a role end."""
        mine = [member for member in self.members if member.role == role]
        for member in mine:
            member.connection.send("end")
        assert {await member.ended() for member in mine} == {0}


@asynccontextmanager
async def crowd_of(folder: Path) -> AsyncIterator[Crowd]:
    """The processes, none of which is left at the end."""
    crowd = Crowd(folder)
    try:
        async with asyncio.timeout(LIMIT_S):
            for role in ROLES:
                crowd.start(role)
            yield crowd
    finally:
        for member in crowd.members:
            member.process.kill()
            asyncio.get_running_loop().remove_reader(member.connection.fileno())


@pytest.mark.proof
async def test_a_shared_store_loses_and_doubles_nothing_however_often_its_writer_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with crowd_of(folder) as crowd:
        for number in range(KILLS):
            await crowd.until_each_has(20)
            await crowd.kill(crowd.writer())
            if number == 1:
                await crowd.kill(next(member for member in crowd.members if member.role == "work"))
        await crowd.until_each_has(20)
        await crowd.end("produce")
        async with Queue.open(str(folder), share=True) as queue:
            await queue.drained("q")
        await crowd.end("work")
    assert not (folder / "socket").exists()
    async with Queue.open(str(folder)) as store:
        events = [record.event async for record in store.log.read()]
    enqueued = Counter(event.id for event in events if isinstance(event, Enqueued))
    acked = Counter(event.id for event in events if isinstance(event, Acked))
    assert set(enqueued.values()) == set(acked.values()) == {1}
    assert enqueued.keys() == acked.keys()
    # One job for each payload, and all that were promised were handled.
    assert all(len(ids) == 1 for ids in crowd.ids.values())
    assert crowd.promised.keys() <= crowd.tried.keys()
    assert len(crowd.tried) == len(enqueued)
    assert crowd.tried.total() - len(crowd.tried) <= KILLS * 200
    reader = await open_reader(str(folder), pinned=True)
    try:
        assert (await audit(reader, clock=SystemClock())).clean
    finally:
        await reader.close()
