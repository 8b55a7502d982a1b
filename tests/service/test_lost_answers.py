"""What a client may assume when requests or answers are lost, and when another writer takes over."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from ledgerq import ClaimLost, DuplicateJobId, Fenced, NewJob, Queue, ServiceUnavailable, Worker
from ledgerq.eventlog.events import Claimed, Enqueued, Nacked
from ledgerq.worker.remote import heartbeat as heartbeats
from ledgerq.worker.remote.remote_queue import RemoteQueue
from tests.service.lossy_proxy import Loss, LossyProxy
from tests.service.rig import RemoteRig
from tests.support.operators import WHO

LIMIT_S = 60.0
losing = pytest.mark.parametrize("loss", ["request", "answer"])


@asynccontextmanager
async def lossy(rig: RemoteRig, *plan: Loss) -> AsyncIterator[RemoteQueue]:
    """A client of the rig's service whose requests, from now on, are lost as planned."""
    async with LossyProxy(rig.server.port) as proxy, Queue.connect(proxy.url, patience=20.0) as queue:
        proxy.plan.extend(plan)
        yield queue
        assert proxy.lost == [one for one in plan if one != "no"]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what another connection brings about."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


async def ids(rig: RemoteRig) -> list[bytes]:
    """The jobs that were enqueued, by the log."""
    return [event.id for event in await rig.events() if isinstance(event, Enqueued)]


@losing
async def test_an_enqueue_that_is_repeated_gives_one_job(loss: Loss) -> None:
    async with RemoteRig() as rig, lossy(rig, loss, loss, "no", loss) as queue:
        added = await queue.enqueue("q", b"x")
        many = await queue.enqueue_many("q", [b"1", NewJob(b"2", unique_key="k"), NewJob(b"3", unique_key="k")])
        assert [one.created for one in (added, *many)] == [True, True, True, many[2].id != many[1].id]
        assert await ids(rig) == [added.id, *dict.fromkeys(one.id for one in many)]


async def test_an_id_of_the_callers_own_that_is_in_use_is_refused() -> None:
    async with RemoteRig() as rig:
        added = await rig.remote.enqueue("q", b"x")
        with pytest.raises(DuplicateJobId):
            await rig.remote.enqueue("q", b"y", job_id=added.job_id)
        with pytest.raises(DuplicateJobId):
            await rig.remote.enqueue_many("q", [NewJob(b"y", job_id=added.job_id), b"z"])
        assert len(await ids(rig)) == 1


@losing
async def test_it_is_refused_also_where_the_call_had_to_be_repeated(loss: Loss) -> None:
    async with RemoteRig() as rig:
        added = await rig.remote.enqueue("q", b"x")
        async with lossy(rig, loss) as queue:
            with pytest.raises(DuplicateJobId):
                await queue.enqueue("q", b"y", job_id=added.job_id)
        assert len(await ids(rig)) == 1


@losing
async def test_an_ack_that_is_repeated_succeeds_and_one_of_a_lost_claim_does_not(loss: Loss) -> None:
    async with RemoteRig() as rig:
        await rig.remote.enqueue_many("q", [b"1", b"2", b"3"])
        one, two, three = await rig.remote.claim("q", limit=3)
        async with lossy(rig, loss, loss) as queue:
            await queue.ack(one, b"result")
            await queue.ack_many([one, two])
            await rig.remote.nack(three, "e", dead=True)
            with pytest.raises(ClaimLost):
                await queue.ack(three)
        assert await rig.remote.result(one.job_id) == b"result"


async def test_claims_whose_answer_is_lost_are_given_back_and_cost_no_attempt() -> None:
    async with RemoteRig() as rig:
        await rig.remote.enqueue("q", b"x")
        rig.faults.hold("write:before")
        async with Queue.connect(rig.server.url) as other:
            claiming = asyncio.create_task(other.claim("q", wait=20))
            await eventually(lambda: "write:before" in rig.faults.calls[-1:] and bool(rig.server.app._polls))
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
            await eventually(lambda: not rig.server.app._polls)
        rig.faults.let_go("write:before")
        (claim,) = await rig.remote.claim("q", wait=20)
        assert claim.attempt == 1
        given_back = [event for event in await rig.events() if isinstance(event, Nacked)]
        assert [event.released for event in given_back] == [True]
        await rig.remote.ack(claim)


async def test_a_claim_that_waits_ends_with_its_client() -> None:
    async with RemoteRig() as rig:
        async with Queue.connect(rig.server.url) as other:
            claiming = asyncio.create_task(other.claim("q", wait=None))
            await eventually(lambda: bool(rig.server.app._polls))
            claiming.cancel()
            await asyncio.gather(claiming, return_exceptions=True)
        await eventually(lambda: not rig.server.app._polls)
        await rig.remote.enqueue("q", b"x")
        assert not [event for event in await rig.events() if isinstance(event, Claimed)]


async def test_a_worker_goes_on_at_the_next_writer_and_acks_there_what_it_claimed_before() -> None:
    async with RemoteRig() as rig, LossyProxy(rig.server.port) as first, LossyProxy() as second:
        async with Queue.connect(f"{first.url},{second.url}", patience=LIMIT_S) as queue:
            begun, go_on, done = asyncio.Event(), asyncio.Event(), list[bytes]()
            worker = Worker(queue, concurrency=1)

            @worker.handler("q")
            async def handle(job: object) -> None:
                begun.set()
                await go_on.wait()
                done.append(job.payload)  # type: ignore[attr-defined]

            running = asyncio.create_task(worker.run(signals=False))
            await queue.enqueue_many("q", [b"1", b"2"])
            await begun.wait()
            before, old, old_server = queue.epoch, rig.local, rig.server
            await rig.remote.close()
            await rig.open()  # another writer, which the old one learns of when the worker's ack comes
            second.port = rig.server.port
            go_on.set()
            await eventually(lambda: len(done) == 2)
            worker.stop()
            await running
            assert queue.epoch > before
            assert isinstance(old.failure, Fenced)
            await old_server.close()
            await old.close()
        assert [(await rig.remote.stats("q")).done, done] == [2, [b"1", b"2"]]
        assert [event.attempt for event in await rig.events() if isinstance(event, Claimed)] == [1, 1]


async def test_a_writer_that_is_over_is_never_talked_to_again() -> None:
    async with RemoteRig() as rig:
        old, old_server = rig.local, rig.server
        await rig.remote.close()
        await rig.open()  # another writer on the same store, which the old one has not noticed yet
        async with Queue.connect(f"{rig.server.url},{old_server.url}", patience=0.1) as queue:
            added = await queue.enqueue("q", b"x")
            assert queue.epoch == rig.local.log.epoch > old.log.epoch
            await rig.server.close()
            with pytest.raises(ServiceUnavailable, match=r"it is the writer of epoch 1, which is over"):
                await queue.get(added.job_id)
        await old_server.close()
        await old.close()
        rig.remote = await Queue.connect(await _serve_again(rig))


async def _serve_again(rig: RemoteRig) -> str:
    from ledgerq.worker.options import QueueOptions
    from ledgerq.worker.service.http_server import Server
    from ledgerq.worker.service.service_app import ServiceApp

    rig.server = await Server.start(ServiceApp(rig.local, default=QueueOptions()))
    return rig.server.url


async def test_an_answer_of_an_older_writer_is_none() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        epoch = epochs.pop(0)
        body = b"\x82\xa7default\x80\xa6queues\x80"  # the answer of /v1/options
        writer.write(b"HTTP/1.1 200 OK\r\nledgerq-epoch: %d\r\ncontent-length: %d\r\n\r\n%s" % (epoch, len(body), body))
        writer.close()

    epochs = [7, 6, 6]
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with Queue.connect(url, patience=0.0) as queue:
        with pytest.raises(ServiceUnavailable, match="the writer of epoch 6, which is over"):
            await queue.stats("q")
        assert queue.epoch == 7
    server.close()


async def test_watchers_learn_of_cancellations_and_lost_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RemoteRig() as rig:
        monkeypatch.setattr(rig.remote._heartbeat, "_interval_s", 0.001)
        assert heartbeats.Heartbeat is type(rig.remote._heartbeat)
        await rig.remote.enqueue_many("q", [b"1", b"2", b"3"])
        claims = await rig.remote.claim("q", limit=3)
        told: list[tuple[int, str]] = []
        for number, claim in enumerate(claims):
            rig.remote.watch(claim, lambda what, number=number: told.append((number, what)))  # type: ignore[misc]
        await rig.local.cancel(claims[0].job_id, **WHO)
        await rig.local.release(claims[1])
        await eventually(lambda: len(told) == 2)
        assert sorted(told) == [(0, "cancel"), (1, "lost")]
        await rig.remote.release(claims[0])
        await rig.remote.ack(claims[2])
        assert not rig.remote._heartbeat._watched
        assert (await rig.remote.get(claims[0].job_id)).state == "cancelled"


async def test_calls_made_at_the_same_time_share_requests() -> None:
    async with RemoteRig() as rig:
        sent: list[int] = []
        real = rig.remote._lanes._send

        async def send(ops: list[bytes]) -> object:
            sent.append(len(ops))
            return await real(ops)

        rig.remote._lanes._send = send  # type: ignore[assignment]
        added = await asyncio.gather(*(rig.remote.enqueue("q", b"%d" % i) for i in range(1500)))
        assert len({one.id for one in added}) == 1500
        assert (len(sent), sum(sent), max(sent)) == (2, 1500, 1000)
        with pytest.raises(TypeError, match="payload"):
            await rig.remote.enqueue("q")  # type: ignore[call-arg]
        assert (await rig.local.stats("q")).pending == 1500
