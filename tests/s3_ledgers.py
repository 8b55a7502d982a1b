"""Queues in a bucket, for tests: proving what is there, and putting back an older copy of it."""

from typing import Any

from ledgerq.eventlog.clock import SystemClock
from ledgerq.eventlog.errors import StoreUnavailable
from ledgerq.eventlog.stores import open_reader
from ledgerq.projections.audit import AuditReport, audit

__all__ = ["Copy", "audit_deeply"]

_TRIES = 10


async def audit_deeply(url: str) -> AuditReport:
    """Audit one commit of the store, payloads too; it must be clean.

    A view that moved on while it was being pinned says so, and is opened again.
    """
    for left in reversed(range(_TRIES)):
        reader = await open_reader(url, pinned=True)
        try:
            report = await audit(reader, clock=SystemClock(), deep=True)
        except StoreUnavailable:
            if not left:
                raise
            continue
        finally:
            await reader.close()
        assert report.clean, report.differences[:5]
        return report
    raise AssertionError


class Copy:
    """A copy of all objects under a prefix, as they were when it was made."""

    def __init__(self, bucket: str, prefix: str) -> None:
        # It comes with moto, without which these tests are skipped.
        import boto3

        self._client: Any = boto3.client("s3")
        self._bucket = bucket
        self._prefix = prefix
        self._kept = {name: self._read(name) for name in self._names()}

    def put_back(self, *, but: tuple[str, ...] = ()) -> None:
        """Make the prefix hold just what it held then; the objects named by `but` stay as they are now."""
        spared = {f"{self._prefix}/{name}" for name in but}
        for name in self._names():
            if name not in spared:
                self._client.delete_object(Bucket=self._bucket, Key=name)
        for name, (content, metadata) in self._kept.items():
            if name not in spared:
                self._client.put_object(Bucket=self._bucket, Key=name, Body=content, Metadata=metadata)

    def read(self, name: str) -> bytes:
        """An object as it is now."""
        return self._read(f"{self._prefix}/{name}")[0]

    def _names(self) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/")
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def _read(self, name: str) -> tuple[bytes, dict[str, str]]:
        found = self._client.get_object(Bucket=self._bucket, Key=name)
        return found["Body"].read(), found["Metadata"]
