"""An object store whose writer renews its lease is refused to every other opener, until it has ended or is silent.

SeaweedFS runs what depends on conditional writes once more. Leases are short here, so that they can run out.
"""

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from ledgerq import Fenced, Queue, StoreInUse, StoreOptions
from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.locations import parse_location
from ledgerq.eventlog.single_writer.hold import current_writer
from ledgerq.eventlog.single_writer.lease import LeaseHold
from ledgerq.eventlog.stores import open_store
from tests.s3.proxy import Fault, fault_proxy
from tests.s3.servers import S3Server, both_servers, bucket, s3_server
from tests.store.writers import ROOT, writer

__all__ = ["bucket", "s3_server"]

LIMIT_S = 60.0
POLL_S = 0.02
BRIEF = StoreOptions(lease_s=1.0)
ELSEWHERE = "another-boot:1:7:7"


class Storage:
    """A store's URL, and its object `writer`."""

    def __init__(self, bucket: str) -> None:
        self.url = f"s3://{bucket}/jobs"
        self.location = parse_location(self.url)
        self._store = S3Store(bucket, prefix="jobs", client_options={"allow_http": True})

    def lease(self) -> dict[str, Any]:
        """The content of the lease object."""
        found: dict[str, Any] = json.loads(bytes(obstore.get(self._store, "writer").bytes()))
        return found

    def has_lease(self) -> bool:
        """Whether there is one."""
        with contextlib.suppress(FileNotFoundError):
            return bool(self.lease())
        return False

    def put(self, content: bytes) -> None:
        """Write the object."""
        obstore.put(self._store, "writer", content)

    def change(self, **fields: object) -> None:
        """Write it with other fields, as another machine would."""
        self.put(json.dumps(self.lease() | fields).encode())

    def remove(self) -> None:
        """Remove it."""
        obstore.delete(self._store, "writer")

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(LIMIT_S):
            while not await asyncio.to_thread(is_so):
                await asyncio.sleep(POLL_S)


@pytest.fixture
def storage(bucket: str) -> Storage:
    """A storage for a store in a new bucket."""
    return Storage(bucket)


@pytest.mark.proof
@both_servers
async def test_a_second_opener_is_refused_and_the_first_goes_on(storage: Storage) -> None:
    async with Queue.open(storage.url) as queue:
        async with writer(storage.url) as other:
            assert other.error == {"error": "StoreInUse", "pid": os.getpid(), "host": os.uname().nodename}
        with pytest.raises(StoreInUse, match="this very process") as caught:
            await Queue.open(storage.url)
        assert caught.value.until_ms is not None
        assert (await queue.enqueue("q", b"x")).created
        assert storage.lease()["ended"] is False
    assert storage.lease()["ended"] is True
    async with writer(storage.url) as other:
        assert other.is_open


@pytest.mark.proof
@both_servers
async def test_of_several_that_open_at_once_one_gets_it(storage: Storage) -> None:
    found = await asyncio.gather(*(Queue.open(storage.url)._make() for _ in range(4)), return_exceptions=True)
    (queue,) = [one for one in found if isinstance(one, Queue)]
    assert {type(one) for one in found if one is not queue} == {StoreInUse}
    assert (await queue.enqueue("q", b"x")).created
    await queue.close()


@pytest.mark.proof
async def test_a_process_of_this_machine_that_was_killed_holds_up_nobody(storage: Storage) -> None:
    async with writer(storage.url) as first:
        await first.ask("enqueue")
        await first.kill()
        async with Queue.open(storage.url) as queue:
            assert (await queue.stats("q")).pending == 1


@pytest.mark.proof
async def test_a_silent_writer_elsewhere_is_waited_for_until_its_lease_has_run_out(storage: Storage) -> None:
    async with Queue.open(storage.url):
        pass
    storage.change(ended=False, identity=ELSEWHERE, host="far", pid=77, lease_ms=1500)
    with pytest.raises(StoreInUse, match=r"process 77 on host far writes it since .* \(until 20") as caught:
        await Queue.open(storage.url)
    assert caught.value.until_ms is not None
    assert caught.value.until_ms <= SystemClock().now_ms() + 2500
    async with asyncio.timeout(LIMIT_S):
        async with Queue.open(storage.url, wait=LIMIT_S) as queue:
            assert (await queue.enqueue("q", b"x")).created


@pytest.mark.proof
async def test_a_wait_ends_when_the_writer_closes(storage: Storage) -> None:
    queue = await Queue.open(storage.url)
    waiting = asyncio.ensure_future(open_store(storage.url, clock=SystemClock(), wait=None))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await queue.close()
    async with asyncio.timeout(LIMIT_S):
        await (await waiting).close()


@pytest.mark.proof
async def test_the_lease_is_renewed_without_a_commit_and_while_the_event_loop_stands_still(storage: Storage) -> None:
    async with Queue.open(storage.url, store_options=BRIEF):
        first = storage.lease()["renewal"]
        while storage.lease()["renewal"] < first + 3:  # the loop does not turn
            pass
        with pytest.raises(StoreInUse):
            await Queue.open(storage.url)


@pytest.mark.proof
@pytest.mark.parametrize("content", [b"", b"\0", b"{}", b'{"host":"h","pid":1,"opened_ms":1,"lease_ms":-5}'])
async def test_a_damaged_lease_counts_for_the_usual_time_and_no_longer(
    storage: Storage, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledgerq.eventlog.single_writer.lease.DEFAULT_LEASE_S", 0.5)
    storage.put(content)
    with pytest.raises(StoreInUse):
        await Queue.open(storage.url)
    async with Queue.open(storage.url, wait=LIMIT_S):
        pass


@pytest.mark.proof
async def test_whoever_takes_over_has_the_lease_and_keeps_it_when_the_other_closes(storage: Storage) -> None:
    first = await Queue.open(storage.url, store_options=BRIEF)
    async with Queue.open(storage.url, store_options=BRIEF, take_over=True) as second:
        assert storage.lease()["opened_ms"] >= 0
        with pytest.raises(Fenced):
            await first.enqueue("q", b"x")
        await first.close()
        with pytest.raises(StoreInUse):
            await Queue.open(storage.url)
        assert (await second.enqueue("q", b"x")).created
    assert storage.lease()["ended"] is True


@pytest.mark.proof
async def test_a_lease_that_went_to_one_that_is_gone_is_taken_back(storage: Storage) -> None:
    async with Queue.open(storage.url, store_options=BRIEF) as queue:
        own = storage.lease()["identity"]
        storage.change(identity=ELSEWHERE, renewal=-1)
        await storage.until(lambda: storage.lease()["identity"] == own)
        assert (await queue.enqueue("q", b"x")).created
    assert storage.lease()["ended"] is True


@asynccontextmanager
async def refused_renewals(
    s3_server: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> AsyncIterator[Queue]:
    """A queue whose lease meets this fault at each renewal."""
    async with fault_proxy(s3_server.port) as proxy:
        with monkeypatch.context() as changed:
            changed.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            queue = await Queue.open(storage.url, store_options=BRIEF)
        proxy.plan = lambda request: fault if request.path.endswith("/writer") else None
        await storage.until(lambda: proxy.met[fault] > 3)
        yield queue
        proxy.plan = None
        await queue.close()


@pytest.mark.proof
@pytest.mark.parametrize("fault", [Fault.ERROR_503, Fault.DENY, Fault.DROP_REQUEST, Fault.CONFLICT])
async def test_a_renewal_that_fails_does_not_end_the_writer(
    s3_server: S3Server,
    storage: Storage,
    monkeypatch: pytest.MonkeyPatch,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with refused_renewals(s3_server, storage, monkeypatch, fault) as queue:
        assert (await queue.enqueue("q", b"x")).created
        assert queue.failure is None
    assert caplog.text.count("lease was not renewed") <= 2


@pytest.mark.proof
@both_servers
async def test_a_renewal_whose_answer_was_lost_is_known_again(
    s3_server: S3Server, storage: Storage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with refused_renewals(s3_server, storage, monkeypatch, Fault.LOSE_ANSWER) as queue:
        assert (await queue.enqueue("q", b"x")).created
    assert "another one's" not in caplog.text


# Versions without leases


@pytest.mark.proof
async def test_recent_commits_are_a_sign_of_life_where_there_is_no_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writer(storage.url) as older:
        await older.ask("enqueue")
        await older.kill()
    storage.remove()
    with pytest.raises(StoreInUse, match="another process writes it"):
        await Queue.open(storage.url)
    monkeypatch.setattr("ledgerq.eventlog.single_writer.older_writer.DEFAULT_LEASE_S", 0.5)
    async with Queue.open(storage.url, wait=LIMIT_S):
        pass
    storage.remove()
    # One that closed has its event in the log.
    monkeypatch.undo()


@pytest.mark.proof
async def test_an_older_writer_that_closed_holds_up_nobody(storage: Storage) -> None:
    async with Queue.open(storage.url):
        pass
    storage.remove()
    async with Queue.open(storage.url):
        pass


# What is left behind


async def test_nothing_is_left_of_the_thread_and_the_probes(storage: Storage, bucket: str) -> None:
    async with Queue.open(storage.url):
        assert await current_writer(storage.location, SystemClock()) is not None
        assert any(thread.name == "ledgerq-lease" for thread in threading.enumerate())
    assert await current_writer(storage.location, SystemClock()) is None
    assert not any(thread.name == "ledgerq-lease" for thread in threading.enumerate())
    store = S3Store(bucket, client_options={"allow_http": True})
    names = {item["path"].split("/")[1] for page in obstore.list(store) for item in page}
    assert names <= {"anchor", "compacted", "compactions", "gc", "manifest", "wal", "writer"}


async def test_an_opening_that_is_cancelled_or_fails_leaves_no_lease(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = asyncio.Event()
    take = LeaseHold.take

    async def slow(self: LeaseHold, over: Any) -> bool:
        taken.set()
        return await take(self, over)

    monkeypatch.setattr(LeaseHold, "take", slow)
    opening = asyncio.ensure_future(open_store(storage.url, clock=SystemClock()))
    await taken.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    async with Queue.open(storage.url, wait=LIMIT_S):
        pass


@pytest.mark.proof
def test_a_loop_that_ended_without_closing_holds_up_nobody(storage: Storage) -> None:
    async def drop() -> None:
        await (await Queue.open(storage.url)).enqueue("q", b"x")

    asyncio.run(drop())

    async def again() -> None:
        async with Queue.open(storage.url) as queue:
            assert (await queue.stats("q")).pending == 1

    asyncio.run(again())


PROGRAM = """
import asyncio, sys, threading
from ledgerq import Queue, StoreOptions

async def main():
    queue = await Queue.open(sys.argv[1], store_options=StoreOptions(lease_s=1))
    await queue.enqueue("q", b"x")
    opened.set()
    sys.stdin.read()

opened = threading.Event()
if sys.argv[2] == "thread":
    # `asyncio.run` ends with a thread of its own, which CPython 3.12 and later start in no program that is ending.
    threading.Thread(target=lambda: asyncio.new_event_loop().run_until_complete(main())).start()
    opened.wait()
else:
    asyncio.run(main())
"""


@pytest.mark.proof
@pytest.mark.parametrize("where", ["main", "thread"])
async def test_a_program_that_does_not_close_renews_its_lease_and_ends(storage: Storage, where: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, storage.url, where),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    await storage.until(lambda: storage.has_lease() and storage.lease()["renewal"] > 5)
    async with asyncio.timeout(LIMIT_S):
        _, err = await process.communicate(b"")
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    async with Queue.open(storage.url) as queue:
        assert (await queue.stats("q")).pending == 1
