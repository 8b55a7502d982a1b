"""The calls of remote clients: large ones leave the event loop to others in between."""

import asyncio

from ledgerq.worker.remote.ops import Ops
from ledgerq.worker.remote.wire import AckOp, EnqueueOp, Op
from tests.support.rig import Rig

LARGE = bytes(200_000)


async def turns_until_staged(rig: Rig, ops: list[Op]) -> int:
    """How many turns of the event loop the calls take before all of them are staged."""
    log, turns = rig.queue.log, 0
    end = log.next_offset + len(ops)
    running = asyncio.create_task(Ops(rig.queue).run(ops, lambda scope, queue: None))
    while log.next_offset < end:
        await asyncio.sleep(0)
        turns += 1
    assert [result.error for result in await running] == [None] * len(ops)
    return turns


async def test_calls_with_large_payloads_and_results_take_a_turn_each() -> None:
    async with Rig() as rig:
        ops: list[Op] = [EnqueueOp(queue="q", payload=LARGE) for _ in range(20)]
        assert await turns_until_staged(rig, ops) >= len(ops)
        claims = await rig.queue.claim("q", limit=20, kept=True)
        acks: list[Op] = [AckOp(claim=(claim.job_id, claim.offset), result=LARGE) for claim in claims]
        assert await turns_until_staged(rig, acks) >= len(acks)
