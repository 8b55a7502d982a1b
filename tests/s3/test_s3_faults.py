"""The queue in a bucket behind a network and a service that fail in each way: no call fails, nothing is lost.

More seeds than these, by hand: S3_FAULT_SEEDS=200 pytest tests/s3/test_s3_faults.py -k random
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from ledgerq.eventlog.errors import Fenced, OutcomeUnknown, StoreUnavailable
from ledgerq.eventlog.slate.options import StoreOptions
from ledgerq.worker.queue import Queue
from tests.process.kill_child import OPTIONS
from tests.process.kills import Facts
from tests.s3.bucket_ledgers import MixedLoad, audit_deeply, check_everything
from tests.s3.proxy import NETWORK_FAULTS, Fault, FaultProxy, Plan, at_random, chosen, fault_proxy
from tests.s3.servers import S3Server, both_servers, bucket, on_seaweed, s3_server
from tests.tiers import sampled

__all__ = ["bucket", "s3_server"]

SEEDS = range(int(os.environ.get("S3_FAULT_SEEDS", "1")))
LIMIT_S = 60.0
REPORT_BYTES = 4_000
MIN_FAULTS = 6
# So that sorted files and manifests are written under load, and not only at the end.
BUSY = StoreOptions(max_wal_flushes_before_l0_flush=6)


async def opened_through(proxy: FaultProxy, url: str, monkeypatch: pytest.MonkeyPatch) -> Queue:
    """A queue that goes through the proxy; what is opened later goes past it."""
    with monkeypatch.context() as changed:
        changed.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        return await Queue.open(url, default=OPTIONS, ready_window=50, store_options=BUSY)


async def run_through(
    plan: Plan,
    s3_server: S3Server,
    url: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    seed: int = 1,
    least_faults: int = MIN_FAULTS,
) -> FaultProxy:
    """Run a load through a proxy with this plan, in which no call fails; then everything is checked past it."""
    facts = Facts(folder)
    async with fault_proxy(s3_server.port) as proxy:
        queue = await opened_through(proxy, url, monkeypatch)
        load = MixedLoad(queue, facts, folder, seed)
        proxy.plan = plan
        async with asyncio.timeout(LIMIT_S):
            await load.report(REPORT_BYTES, LIMIT_S)
            # A busy machine does the same work in fewer commits, and so with fewer requests.
            while proxy.met.total() < least_faults:
                await load.report(100, LIMIT_S)
        await load.stop()
        assert queue.failure is None
        assert queue.log.epoch == 1
        async with asyncio.timeout(LIMIT_S):
            await queue.close()
    await check_everything(url, facts)
    return proxy


@pytest.mark.parametrize(
    "fault", sampled([*NETWORK_FAULTS[::-1], Fault.GARBAGE, Fault.DENY_ROLE]), ids=lambda fault: fault.name
)
@on_seaweed
async def test_each_fault_alone(
    fault: Fault, s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_through(chosen(fault, every=4), s3_server, f"s3://{bucket}/jobs", tmp_path, monkeypatch)


@pytest.mark.proof
@pytest.mark.parametrize("seed", SEEDS)
@both_servers
async def test_all_faults_at_random(
    seed: int, s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = at_random(seed, NETWORK_FAULTS, share=0.2)
    await run_through(plan, s3_server, f"s3://{bucket}/jobs", tmp_path, monkeypatch, seed=seed)


# A conditional PUT that was applied is refused when it is sent again. SlateDB knows its own write by a mark in the
# object's metadata; these would look like another writer's without it.
@pytest.mark.proof
@pytest.mark.parametrize("kind", ["wal", "manifest"])
@both_servers
async def test_a_write_that_was_done_and_not_answered_is_known_again(
    kind: str, s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts = chosen(Fault.LOSE_ANSWER, kind, "PUT", every=2, times=4)
    looks = chosen(Fault.CUT_ANSWER, kind, "HEAD", every=2, times=2)
    url, plan = f"s3://{bucket}/jobs", in_turn(puts, looks)
    proxy = await run_through(plan, s3_server, url, tmp_path, monkeypatch, least_faults=4)
    assert proxy.seen[kind, "HEAD"] >= 2, "nobody looked whose write it was"


@pytest.mark.proof
@both_servers
async def test_a_conflict_that_nobody_caused_is_no_fence_and_loses_nothing(
    s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS answers 409 while an equal request is still being served; SlateDB then takes itself for fenced, and closes.

    Whoever opens again on a passing error does so, and goes on.
    """
    url = f"s3://{bucket}/jobs"
    facts = Facts(tmp_path)
    async with fault_proxy(s3_server.port) as proxy:
        queue = await opened_through(proxy, url, monkeypatch)
        load = MixedLoad(queue, facts, tmp_path, 1)
        await load.report(1_000, LIMIT_S)
        proxy.plan = chosen(Fault.CONFLICT, "wal", "PUT", times=1)
        ends = await load.ends(LIMIT_S)
        assert {type(end) for end in ends} == {OutcomeUnknown}, ends
        assert isinstance(queue.failure, OutcomeUnknown)
        assert queue.failure.permanent is False
        assert "409" in str(queue.failure)
        with pytest.raises(OutcomeUnknown):
            await queue.stats("q")
        async with asyncio.timeout(LIMIT_S):
            await queue.close()
            # It is no other writer's, so nothing is to be taken over.
            queue = await opened_through(proxy, url, monkeypatch)
            await queue.close()
    await check_everything(url, facts)


@both_servers
async def test_a_conflict_after_a_takeover_is_a_fence(
    s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"s3://{bucket}/jobs"
    async with fault_proxy(s3_server.port) as proxy:
        first = await opened_through(proxy, url, monkeypatch)
        async with Queue.open(url, take_over=True) as second:
            proxy.plan = chosen(Fault.CONFLICT, "wal", "PUT", times=1)
            with pytest.raises(Fenced):
                await first.enqueue("q", b"x")
            with pytest.raises(Fenced):
                await first.stats("q")
            assert (await second.enqueue("q", b"x")).created
            await first.close()


@pytest.mark.proof
@both_servers
async def test_conflicts_elsewhere_are_passed_over(
    s3_server: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = in_turn(
        chosen(Fault.CONFLICT, "manifest", "PUT", every=2, times=3),
        chosen(Fault.CONFLICT, "other", "PUT", every=2, times=2),
        chosen(Fault.CONFLICT, "compactions", "PUT", every=2, times=2),
    )
    await run_through(plan, s3_server, f"s3://{bucket}/jobs", tmp_path, monkeypatch, least_faults=2)


def in_turn(*plans: Plan) -> Plan:
    """The first of their messages that is not empty."""
    return lambda request: next((fault for plan in plans if (fault := plan(request)) is not None), None)


@pytest.mark.proof
@pytest.mark.parametrize("seed", SEEDS)
@both_servers
async def test_opening_and_closing_at_random(
    seed: int, s3_server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An opening succeeds, or ends in time with `StoreUnavailable`: never with another writer as the cause."""
    url = f"s3://{bucket}/jobs"
    reported: list[str] = []
    refused: list[StoreUnavailable] = []
    async with fault_proxy(s3_server.port) as proxy:
        for plan in plans(seed):
            proxy.plan = plan
            async with asyncio.timeout(LIMIT_S):
                try:
                    queue = await opened_through(proxy, url, monkeypatch)
                except StoreUnavailable as error:
                    refused.append(error)
                    continue
                reported.append((await queue.enqueue("q", b"x")).job_id)
                assert queue.failure is None
                await queue.close()
        assert proxy.met.total() > 0
    assert len(reported) >= 2, refused
    async with Queue.open(url) as queue:
        for job_id in reported:
            assert (await queue.get(job_id)).state == "pending"
    assert (await audit_deeply(url)).jobs >= len(reported)


def plans(seed: int) -> Iterable[Plan]:
    """First the writes that are answered badly, then anything."""
    yield chosen(Fault.LOSE_ANSWER, "manifest", "PUT", every=2)
    yield chosen(Fault.LOSE_ANSWER, "wal", "PUT", every=2)
    for number in range(2):
        yield at_random(1000 * seed + number, NETWORK_FAULTS, share=0.1)
