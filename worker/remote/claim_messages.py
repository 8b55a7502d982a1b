"""Claims as messages, and messages as claims."""

from ledgerq.eventlog.entropy import job_id_bytes
from ledgerq.eventlog.side_records import PayloadRecord
from ledgerq.worker.claims import Claim
from ledgerq.worker.remote.wire import ClaimMessage

__all__ = ["claim_of", "message_of"]


def claim_of(message: ClaimMessage) -> Claim:
    """The claim in a message."""
    return Claim(
        message.queue,
        job_id_bytes(message.id),
        message.offset,
        message.attempt,
        message.max_attempts,
        message.priority,
        message.enqueued_ms,
        message.lease_ms,
        message.lease_expires_ms,
        PayloadRecord(b"", message.headers, message.payload),
        message.terms,
        message.limited,
    )


def message_of(claim: Claim) -> ClaimMessage:
    """The message of a claim."""
    return ClaimMessage(
        queue=claim.queue,
        id=claim.job_id,
        offset=claim.offset,
        attempt=claim.attempt,
        max_attempts=claim.max_attempts,
        priority=claim.priority,
        enqueued_ms=claim.enqueued_ms,
        lease_ms=claim.lease_ms,
        lease_expires_ms=claim.lease_expires_ms,
        payload=claim.payload,
        headers=claim.record.headers,
        task=claim.task,
        terms=claim.terms,
        limited=claim.limited,
    )
