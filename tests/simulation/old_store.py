"""The beginning of some simulated worlds: a store of format 2 with a few jobs, brought to the present format.

Its log has record batches of version 1, in which unique keys stand as they are; the calls of the world then meet the
same keys.
"""

import random

from msgspec.structs import astuple

from ledgerq.eventlog import keys
from ledgerq.eventlog.codec import KIND_OF, NO_DIGEST, Head, decode_batch, digest_of, encode_head, pack
from ledgerq.eventlog.events import Enqueued, Event, UniqueUntil, WriterOpened
from ledgerq.eventlog.memory import MemoryStore
from ledgerq.eventlog.side_records import encode_payload
from ledgerq.eventlog.store import Anchor
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import stats_key
from ledgerq.projections.indexes import index_entries
from ledgerq.projections.rebuild import rebuild
from tests.simulation.machine import Machine
from tests.simulation.oracle import Asked

__all__ = ["begin_with_format_2"]

_FIRST_TOKEN = 1_000_000
_FORMAT_2_FIELDS = 9  # of an enqueued event


async def begin_with_format_2(world: Machine, queues: list[str]) -> None:
    """Put such a store on the world's disk, upgrade it, and give all to the checkers."""
    rng, disk, now_ms = random.Random(f"format 2 {world.plan.seed}"), world.disk, world.clock.now_ms()
    events: list[Event] = [WriterOpened("old", "0.2.0", None)]
    rows: dict[bytes, bytes] = {keys.FORMAT_KEY: b"2"}
    held: set[tuple[str, bytes | None]] = set()
    for number, queue in enumerate(queues):
        token = _FIRST_TOKEN + number
        key, payload = rng.choice((None, b"key-%d" % rng.randrange(3))), b"%d old" % token
        key = None if (queue, key) in held else key
        held.add((queue, key))
        sealed = encode_payload(world.entropy.take(16), None, payload)
        until: UniqueUntil = rng.choice(("finished", "claimed"))
        attempts = world.plan.settings["max_attempts"]
        asked = Asked(queue, payload, None, 1000, attempts, 0, key, until, None)
        id, size_bytes, digest = world.entropy.take(16), len(sealed), digest_of(sealed)
        event = Enqueued(id, queue, asked.priority, attempts, asked.due_ms, key, until, size_bytes, digest)
        world.oracle.asked[token] = asked
        rows[keys.payload_key(len(events))] = sealed
        events.append(event)
    kinds = bytes(KIND_OF[type(event)] for event in events)
    fields = [astuple(event)[:_FORMAT_2_FIELDS] for event in events]
    rows[keys.log_key(0)] = value = pack((1, 1, NO_DIGEST, now_ms, kinds, fields))
    head = Head(len(events), digest_of(value), 1, now_ms, 0)
    rows[keys.HEAD_KEY] = encode_head(head)
    fold = Fold()
    fold.apply_batch(decode_batch(0, value))
    for job in fold.jobs.values():
        rows |= index_entries(job, 2)
    for queue, counters in fold.counters.items():
        rows[stats_key(queue)] = counters.encode(2)
    disk.rows.update(rows)
    disk.anchor = Anchor(0, head.next_offset, head.digest, head.epoch, head.time_ms)
    await rebuild(MemoryStore(disk), clock=world.clock, actor="someone", reason="an upgrade")
    # No key was digested yet; what chance gave is none that a seed could give again.
    disk.rows[keys.SECRET_KEY] = world.entropy.take(keys.SECRET_BYTES)
    world.ledger.changed(dict(disk.rows))
