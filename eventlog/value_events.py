"""The events of the key-value rows that jobs and transactions set. events.py has all others."""

from ledgerq.eventlog.facts import Count, Digest, Fact, Id

__all__ = ["KvDeleted", "KvSet", "ValueEvent"]


class KvSet(Fact, frozen=True):
    """The key has another value from here on, which stands beside the log; its version is the offset of this event.

    `digest` is the BLAKE2b-256 of a random salt and the value, which are `size_bytes` long together. `job`: the job
    with whose settlement it was set, in the same commit; None for a transaction's.
    """

    key: str
    size_bytes: Count
    digest: Digest
    job: Id | None = None


class KvDeleted(Fact, frozen=True):
    """The key has no value any more. `job` as in `KvSet`; `lost`: a rebuild or a copy found that its value is gone."""

    key: str
    job: Id | None = None
    lost: bool = False


ValueEvent = KvSet | KvDeleted
