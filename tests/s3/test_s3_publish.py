"""Publishing to a bucket: conditional writes alone keep two publishers from forking a tree."""

import asyncio

import pytest

from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.trust.places import CHECKPOINT, ObjectPlace, open_place
from ledgerq.eventlog.trust.publisher import publish
from ledgerq.eventlog.trust.receipts import make_receipt
from ledgerq.eventlog.trust.verifier import check_receipt, policy_of
from tests.s3.servers import both_servers, bucket, s3_server
from tests.support.rig import Rig
from tests.support.trees import KEY, job_offsets, log_of

__all__ = ["bucket", "s3_server"]


@pytest.mark.proof
@both_servers
async def test_a_tree_in_a_bucket(bucket: str) -> None:
    async with Rig() as rig:
        place, other = open_place(f"s3://{bucket}/jobs", None), open_place(f"s3://{bucket}/jobs", None)
        assert (place.name, type(place)) == (f"s3://{bucket}/jobs/tlog", ObjectPlace)
        job = (await rig.queue.enqueue("q", b"x")).job_id
        first = await publish(log_of(rig.disk), place, KEY)
        # Of many at once, one signs; all others are told, or find that there is nothing to do.
        await rig.queue.enqueue("q", b"x")
        tries = [publish(log_of(rig.disk), open_place(f"s3://{bucket}/jobs", None), KEY) for _ in range(4)]
        done = await asyncio.gather(*tries, return_exceptions=True)
        roots = {one.root for one in done if not isinstance(one, BaseException)}
        assert len(roots) == 1
        assert all(isinstance(one, StoreUnavailable) for one in done if isinstance(one, BaseException))
        again = await publish(log_of(rig.disk), other, KEY, signed=first.note)
        assert {again.root} == roots
        # A version that was read before is not written over.
        stale = await place.get(CHECKPOINT)
        assert await other.get(CHECKPOINT) == stale
        assert await other.replace(CHECKPOINT, b"other", stale)
        assert not await place.replace(CHECKPOINT, b"mine", stale)
        assert await other.replace(CHECKPOINT, stale or b"", b"other")
        receipt = await make_receipt(log_of(rig.disk), place, await job_offsets(rig, job))
        assert len(check_receipt(receipt, policy_of(KEY.verifier)).events) == 1
        for _ in range(256):
            await rig.queue.enqueue("q", b"x")
        await publish(log_of(rig.disk), place, KEY)
        assert await place.get("tile/0/000") is not None
        assert await place.get("tile/0/000.p/3") is None
        with pytest.raises(StoreUnavailable, match="no bucket"):
            await publish(log_of(rig.disk), open_place("s3://nowhere/x", None), KEY)
