"""Checks of a job's payload record, and the error that the job's dead letter bears when the payload is lost."""

from typing import Final, NamedTuple

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import RowUnreadable
from ledgerq.eventlog.events import DeadLettered
from ledgerq.eventlog.keys import payload_key
from ledgerq.eventlog.side_records import decode_payload
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.job import Job, may

__all__ = ["CHANGED", "LostPayload", "MISSING", "UNREADABLE", "payload_fault", "read_payload"]

MISSING: Final = "the payload is missing"
CHANGED: Final = "the payload doesn't match its digest"
UNREADABLE: Final = "the payload can't be read: its block in a file of the store is damaged"


class LostPayload(NamedTuple):
    """A job whose payload is lost, in the state it was in before, and why.

    One that was waiting or claimed is a dead letter in the new store; of a finished one only the payload is missing.
    """

    job: Job
    why: str

    @property
    def is_dead_letter(self) -> bool:
        """Whether the job became a dead letter because of it."""
        return may(self.job.state, DeadLettered)


def payload_fault(job: Job, value: bytes | None) -> str:
    """Why the record found under the key of the job's payload is not that payload; empty when it is."""
    if value is None:
        return MISSING
    if digest_of(value) != job.spec.payload_digest:
        return CHANGED
    try:
        decode_payload(value)
    except ValueError as error:
        return f"the payload can't be decoded: {error}"
    return ""


async def read_payload(store: ReadStore, job: Job) -> tuple[bytes | None, str]:
    """A job's payload record, or None and why it is lost. Raises the store's error when more is unreadable."""
    fault = ""
    try:
        value = await store.get(payload_key(job.payload_offset))
    except RowUnreadable as error:
        value, fault = error.found, f"{UNREADABLE} ({error.where})"
    if not (wrong := payload_fault(job, value)):
        return value, ""
    return None, fault or wrong
