"""Planted defects of unique keys: each breaks a promise about periods, or about jobs that are replaced."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.projections.job import FINISHED
from ledgerq.worker.engine import admission, commit_rows, decisions, unique_keys

__all__ = ["UNIQUE_DEFECTS"]

Patch = pytest.MonkeyPatch


def payload_of_a_replaced_job_swept_twice(patch: Patch) -> None:
    """With a job that was replaced the payload that it had at first is deleted once more."""
    real = commit_rows.index_changes

    def index_changes(touched: Any) -> Any:
        gone = [before for before, after in touched.values() if before is not None and after is None]
        return real(touched) | {keys.payload_key(job.offset): None for job in gone if job.payload_at}

    patch.setattr(commit_rows, "index_changes", index_changes)


def payload_of_a_replaced_job_left(patch: Patch) -> None:
    """What a job had before it was replaced stays in the store."""
    real = commit_rows.index_changes

    def index_changes(touched: Any) -> Any:
        changes = real(touched)
        for before, after in touched.values():
            if before is not None and after is not None and before.payload_offset != after.payload_offset:
                changes.pop(keys.payload_key(before.payload_offset), None)
        return changes

    patch.setattr(commit_rows, "index_changes", index_changes)


def payload_replaced_in_its_own_commit_written(patch: Patch) -> None:
    """The payload of a job that is replaced in the commit that brings it is written all the same."""
    patch.setattr(admission, "payload_key", lambda offset: b"")


def key_held_too_short(patch: Patch) -> None:
    """The period of a key ends with its job."""
    patch.setattr(admission, "holds_key", lambda job, time_ms: job.unique_held and job.state not in FINISHED)


def key_kept_for_ever(patch: Patch) -> None:
    """A key whose period is over is not given up to others."""
    patch.setattr(admission, "holds_key", lambda job, time_ms: job.unique_held)


def record_of_a_key_swept_too_early(patch: Patch) -> None:
    """A finished job is swept after its usual time, whatever period its key has."""
    patch.setattr(decisions, "kept_until_ms", lambda job, now_ms, keep_s: now_ms + round(keep_s * 1000))


def period_moves_with_each_call(patch: Patch) -> None:
    """A job that is replaced holds its key for another period."""
    real = unique_keys.replaced

    def replaced(holder: Any, event: Any, conflict: Any, now_ms: int) -> Any:
        found = real(holder, event, conflict, now_ms)
        return None if found is None else replace(found, terms=event.terms)

    patch.setattr(admission, "replaced", replaced)


def put_off_without_an_end(patch: Patch) -> None:
    """A debounced job is put off by each call, however long that goes on."""
    real = unique_keys.replaced

    def replaced(holder: Any, event: Any, conflict: Any, now_ms: int) -> Any:
        return real(holder, event, conflict._replace(most_ms=0), now_ms)

    patch.setattr(admission, "replaced", replaced)


UNIQUE_DEFECTS: dict[str, Callable[[Patch], None]] = {
    one.__name__: one
    for one in (
        payload_of_a_replaced_job_swept_twice,
        payload_of_a_replaced_job_left,
        payload_replaced_in_its_own_commit_written,
        key_held_too_short,
        key_kept_for_ever,
        record_of_a_key_swept_too_early,
        period_moves_with_each_call,
        put_off_without_an_end,
    )
}
