"""The event of the log's published tree. events.py has all others."""

from typing import Annotated

from msgspec import Meta

from ledgerq.eventlog.facts import Count, Digest, Fact

__all__ = ["Checkpointed"]


class Checkpointed(Fact, frozen=True):
    """A checkpoint of the log's published tree was seen, with a good signature of the key `key_id` of `origin`.

    Its tree has `tree_size` leaves, one for each record batch from the tree's beginning up to `next_offset`, and this
    root.
    """

    origin: str
    key_id: Annotated[bytes, Meta(min_length=4, max_length=4)]
    tree_size: Annotated[int, Meta(ge=1)]
    next_offset: Count
    root: Digest
