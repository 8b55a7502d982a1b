"""Descriptions of keys and their values, for people and as JSON."""

from typing import Any, Final

from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.events import KvSet, ValueEvent
from ledgerq.projections.values import KvKey, KvPast
from ledgerq.tools.console.output import json_bytes

__all__ = ["KEY_COLUMNS", "key_json", "key_row", "past_json", "past_text", "value_text"]

KEY_COLUMNS: Final = ["key", "version", "bytes"]


def value_text(event: ValueEvent) -> str:
    """An event of a key as one line."""
    parts = [f"key {event.key!r}"]
    if isinstance(event, KvSet):
        parts.append(f"{event.size_bytes} bytes of salt and value")
    elif event.lost:
        parts.append("whose value was lost")
    if event.job is not None:
        parts.append(f"with the end of job {job_id_text(event.job)}")
    return ", ".join(parts)


def key_row(key: KvKey) -> list[str]:
    """A key of a listing as the cells of a table."""
    return [key.key, str(key.version), str(key.value_bytes)]


def key_json(key: KvKey) -> dict[str, Any]:
    """A key of a listing as JSON."""
    return key._asdict()


def past_json(key: str, found: KvPast) -> dict[str, Any]:
    """What a key has, or had, as JSON; `value` is null where it is not kept any more."""
    value = None if found.value is None else json_bytes(found.value)
    return {"key": key, "version": found.version, "digest": found.digest.hex(), "value": value}


def past_text(found: KvPast) -> str:
    """What a key has, or had, for people."""
    if found.value is None:
        return f"version {found.version}, digest {found.digest.hex()}: overwritten or deleted since, and not kept"
    value = json_bytes(found.value)
    return value if isinstance(value, str) else f"base64 {value['base64']}"
