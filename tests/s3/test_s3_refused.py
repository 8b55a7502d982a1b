"""Places that are no bucket of ours, or cease to be one under a running queue: clear errors, in time, nothing lost."""

import asyncio
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import LedgerError, LogPoisoned, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.queue import Queue
from ledgerq.worker.worker import Worker
from tests.process.kills import Facts
from tests.s3.bucket_ledgers import MixedLoad, check_everything
from tests.s3.proxy import Fault, FaultProxy, chosen, fault_proxy
from tests.s3.servers import S3Server, both_servers, bucket, on_seaweed, s3_server

__all__ = ["bucket", "s3_server"]

OPENING_LIMIT_S = 90.0
LIMIT_S = 60.0
COMMIT_LIMIT_S = 3.0
SHORT = StoreOptions(commit_timeout_s=COMMIT_LIMIT_S, read_timeout_s=COMMIT_LIMIT_S)


async def opened(proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """A queue that goes through the proxy; what is opened later goes past it."""
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        async with asyncio.timeout(OPENING_LIMIT_S):
            return await Queue.open(url, store_options=SHORT)


@on_seaweed
async def test_a_wrong_secret_is_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    async with asyncio.timeout(OPENING_LIMIT_S):
        with pytest.raises(StoreUnavailable, match=r"access was refused.*AWS_SECRET_ACCESS_KEY"):
            await Queue.open(f"s3://{bucket}/jobs")


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (Fault.HTML, "can't be reached"),
        (Fault.GARBAGE, "can't be reached"),
        (Fault.DROP_REQUEST, "can't be reached"),
        (Fault.SLOW_DOWN, "SlowDown"),
        (Fault.DENY, "access was refused"),
        (Fault.DENY_ROLE, "access was refused"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_what_is_no_bucket_is_no_place_to_open(
    fault: Fault, what: str, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fault_proxy(s3_server.port) as proxy:
        proxy.plan = chosen(fault)
        with pytest.raises(StoreUnavailable, match=what) as caught:
            await opened(proxy, f"s3://{bucket}/jobs", monkeypatch)
        assert "\n" not in str(caught.value)


@pytest.mark.proof
@pytest.mark.parametrize(
    ("fault", "what"),
    [
        (Fault.DENY, "may or may not be in the log.*access was refused.*AWS_ACCESS_KEY_ID"),
        (Fault.DENY_ROLE, "may or may not be in the log.*access was refused.*AWS_ACCESS_KEY_ID"),
        (Fault.GARBAGE, "may or may not be in the log.*can't be reached"),
        (Fault.HTML, "open it again"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_bucket_that_refuses_under_a_running_queue(
    fault: Fault, what: str, s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/jobs"
    facts = Facts(tmp_path)
    async with fault_proxy(s3_server.port) as proxy:
        queue = await opened(proxy, url, monkeypatch)
        waiting = asyncio.create_task(queue.claim("other", wait=None))
        worker = Worker(queue)
        worker.handler("elsewhere")(lambda job: None)
        working = asyncio.create_task(worker.run())
        load = MixedLoad(queue, facts, tmp_path, 1)
        await load.report(1_000, LIMIT_S)
        proxy.plan = chosen(fault)
        ends = await load.ends(LIMIT_S)
        assert {type(end) for end in ends} <= {OutcomeUnknown, LogPoisoned, StoreUnavailable}, ends
        with pytest.raises((OutcomeUnknown, LogPoisoned), match=what) as caught:
            await waiting
        assert "\n" not in str(caught.value)
        with pytest.raises((OutcomeUnknown, LogPoisoned), match=what):
            async with asyncio.timeout(LIMIT_S):
                await working
        async with asyncio.timeout(LIMIT_S):
            await queue.close()
    await check_everything(url, facts)


@both_servers
async def test_a_bucket_that_is_deleted_under_a_running_queue(s3_server: S3Server, bucket: str) -> None:
    url = f"s3://{bucket}/jobs"
    queue = await Queue.open(url)
    await queue.enqueue("q", b"x")
    # Not before: on a busy machine the first commit may take longer than that.
    vars(queue.log.store)["_options"] = SHORT
    waiting = asyncio.create_task(queue.claim("other", wait=None))
    s3_server.delete_bucket(bucket)
    async with asyncio.timeout(LIMIT_S):
        for call in (queue.enqueue("q", b"y"), queue.enqueue("q", b"z"), waiting):
            with pytest.raises(LedgerError, match=f"no bucket '{bucket}'") as caught:
                await call
            assert isinstance(caught.value, OutcomeUnknown | LogPoisoned)
            assert "\n" not in str(caught.value)
        await queue.close()
        with pytest.raises(StoreUnavailable, match=f"no bucket '{bucket}'"):
            await Queue.open(url, store_options=SHORT)
