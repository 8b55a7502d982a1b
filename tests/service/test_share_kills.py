"""A shared store whose writer is killed again and again, with a ledger of what was promised outside of it."""

import asyncio
import contextlib
import json
import os
import signal
import sys
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

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
KILLS = 3
ROLES = ["produce"] * 4 + ["work"] * 2


class Member(asyncio.SubprocessProtocol):
    """One process, and what it has reported."""

    def __init__(self, crowd: "Crowd", role: str) -> None:
        self.crowd = crowd
        self.role = role
        self.is_open = False
        self.count = 0
        self.rest = b""
        self.ended = asyncio.get_running_loop().create_future()
        self.transport: asyncio.SubprocessTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            kind, *words = line.decode().split(" ")
            if kind == "open":
                self.is_open = True
                continue
            self.count += 1
            payload, job_id = words
            self.crowd.ids[payload].add(job_id)
            (self.crowd.promised if kind == "promised" else self.crowd.tried)[job_id] += 1
        self.crowd.changed.set()

    def process_exited(self) -> None:
        self.ended.set_result(self.transport.get_returncode())


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

    async def start(self, role: str) -> Member:
        """Start one more."""
        member = Member(self, role)
        self.members.append(member)
        self.started += 1
        program = [sys.executable, str(ROOT / "tests/service/share_child.py")]
        await asyncio.get_running_loop().subprocess_exec(
            lambda: member,
            *program,
            *(str(self.folder), role, f"{role}{self.started}"),
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=None,
        )
        return member

    async def until_each_has(self, more: int) -> None:
        """Wait until each of them has so many more reports."""
        begun = {member: member.count for member in self.members}
        while any(member.count < count + more for member, count in begun.items()):
            self.changed.clear()
            await self.changed.wait()
            assert not [member for member in self.members if member.ended.done()]

    def writer(self) -> Member | None:
        """The one that is the store's writer by its lock's file."""
        pid = json.loads((self.folder / "writer").read_text())["pid"]
        return next((member for member in self.members if member.transport.get_pid() == pid), None)

    async def kill(self, member: Member) -> None:
        """Kill one, and start another one in its place."""
        member.transport.send_signal(signal.SIGKILL)
        await member.ended
        self.members.remove(member)
        await self.start(member.role)

    async def end(self, role: str) -> None:
        """Let those of a role end."""
        for member in self.members:
            if member.role == role:
                pipe = member.transport.get_pipe_transport(0)
                assert pipe is not None
                pipe.close()
        assert {await member.ended for member in self.members if member.role == role} == {0}


@asynccontextmanager
async def crowd_of(folder: Path) -> AsyncIterator[Crowd]:
    """The processes, none of which is left at the end."""
    crowd = Crowd(folder)
    try:
        async with asyncio.timeout(LIMIT_S):
            for role in ROLES:
                await crowd.start(role)
            yield crowd
    finally:
        for member in crowd.members:
            with contextlib.suppress(ProcessLookupError):
                member.transport.kill()
            member.transport.close()


@pytest.mark.proof
async def test_a_shared_store_loses_and_doubles_nothing_however_often_its_writer_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    async with crowd_of(folder) as crowd:
        for number in range(KILLS):
            await crowd.until_each_has(20)
            writer = crowd.writer()
            assert writer is not None
            await crowd.kill(writer)
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
