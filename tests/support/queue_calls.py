"""Every public call of a queue, for tests of what holds for all of them."""

from collections.abc import Awaitable, Callable

import pytest

from ledgerq.worker.claims import Claim
from ledgerq.worker.queue import Queue
from tests.support.operators import WHO

__all__ = ["CALLS", "Call", "every_call"]

Call = Callable[[Queue, Claim], Awaitable[object]]

CALLS: dict[str, Call] = {
    "enqueue": lambda queue, claim: queue.enqueue("q", b""),
    "enqueue unique": lambda queue, claim: queue.enqueue("q", b"", unique_key="k"),
    "enqueue_many": lambda queue, claim: queue.enqueue_many("q", [b""]),
    "claim": lambda queue, claim: queue.claim("q"),
    "claim with a wait": lambda queue, claim: queue.claim("empty", wait=None),
    "ack": lambda queue, claim: queue.ack(claim),
    "ack_many": lambda queue, claim: queue.ack_many([claim]),
    "nack": lambda queue, claim: queue.nack(claim, "e"),
    "release": lambda queue, claim: queue.release(claim),
    "extend": lambda queue, claim: queue.extend(claim, 5),
    "cancel": lambda queue, claim: queue.cancel(claim.job_id, **WHO),
    "requeue": lambda queue, claim: queue.requeue(claim.job_id, **WHO),
    "pause": lambda queue, claim: queue.pause("q", **WHO),
    "resume": lambda queue, claim: queue.resume("q", **WHO),
    "get": lambda queue, claim: queue.get(claim.job_id),
    "payload": lambda queue, claim: queue.payload(claim.job_id),
    "history": lambda queue, claim: queue.history(claim.job_id),
    "jobs": lambda queue, claim: queue.jobs("q"),
    "stats": lambda queue, claim: queue.stats("q"),
    "queues": lambda queue, claim: queue.queues(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
