"""The damage that the demo does to its own store without the log, as by a forger who hides a failure."""

from typing import Final, NamedTuple

from msgspec.structs import replace

from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import pack
from ledgerq.eventlog.events import STATES
from ledgerq.eventlog.log import LogReader
from ledgerq.eventlog.store import Store
from ledgerq.projections.index_keys import finished_key, job_key, pending_key, stats_key
from ledgerq.projections.job import Job
from ledgerq.projections.stats import QueueCounters
from ledgerq.projections.view import LedgerView

__all__ = ["Damage", "damage"]

_REMOVED_ROWS: Final = 3


class Damage(NamedTuple):
    """The numbers of index rows changed in each way, which an audit must find."""

    removed: int
    altered: int
    added: int
    counters: int
    hides_a_dead_letter: bool

    @property
    def total(self) -> int:
        """The number of rows that differ from the fold of the log."""
        return self.removed + self.altered + self.added + self.counters


async def damage(store: Store, queue: str, *, clock: Clock) -> Damage:
    """Falsify the index of a queue whose jobs are all finished, directly in the store; the log is left alone.

    Some jobs vanish, from the range of finished jobs or altogether; one that is dead (or, without such, done) changes
    its state; one that is done is to be done again; and the counters agree with the forgery.
    """
    view = LedgerView(LogReader(store, clock=clock))
    done = (await view.jobs(queue, state="done", limit=_REMOVED_ROWS + 1)).jobs
    dead = (await view.jobs(queue, state="dead", limit=1)).jobs
    changes: dict[bytes, bytes | None] = {}
    for job in done[:_REMOVED_ROWS]:
        changes[finished_key(job.sweep_at_ms, job.id)] = None
    for job in done[1:_REMOVED_ROWS]:
        changes[job_key(job.id)] = None
    removed = len(changes)
    liar = dead[0] if dead else done[0]
    lie = replace(liar, state="done" if dead else "cancelled", last_error="")
    changes[job_key(liar.id)] = pack(lie)
    changes[pending_key(queue, done[0].priority, done[0].offset)] = done[0].id
    queue_counters = await view.store.get(stats_key(queue))
    changes[stats_key(queue)] = _counters(QueueCounters.decode(queue_counters or b""), liar, lie)
    batch = store.batch()
    for key, value in changes.items():
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    await store.write(batch)
    return Damage(removed, 1, 1, 1, bool(dead))


def _counters(queue_counters: QueueCounters, before: Job, after: Job) -> bytes:
    queue_counters.now[STATES.index(before.state)] -= 1
    queue_counters.now[STATES.index(after.state)] += 1
    return queue_counters.encode()
