"""How far a running try has come, as its handler reports it: a row that is no fact, and goes with the claim.

No event has it, so no audit looks at it, and no rebuild or copy makes it. The row of a claim that is over counts for
nothing.
"""

from typing import NamedTuple

from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.keys import progress_key
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.job import Job

__all__ = ["Progress", "encode_progress", "read_progress"]


class Progress(NamedTuple):
    """A report of a try: the part of the work that is done, from 0 to 1, a text, and when it was, in ms since 1970."""

    fraction: float
    text: str
    at_ms: int


def encode_progress(claim_offset: int, progress: Progress) -> bytes:
    """The row of a report, with the offset of the claim that it is of."""
    return pack((claim_offset, *progress))


async def read_progress(store: ReadStore, job: Job) -> Progress | None:
    """The last stored report of the job's current try; None without one."""
    row = await store.get(progress_key(job.id)) if job.state == "claimed" else None
    if row is None:
        return None
    try:
        claim_offset, fraction, text, at_ms = unpack(row)
    except (ValueError, TypeError):
        return None
    if claim_offset != job.claim_offset or (type(fraction), type(text), type(at_ms)) != (float, str, int):
        return None
    return Progress(fraction, text, at_ms)
