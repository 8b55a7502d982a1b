"""The rows beside the log under a simulation, checked as they come and go: payloads, texts, the secret.

A payload and a text come with their event and are those that were given; they go when their job is swept, or
their schedule is set anew or removed, not before and not later. The secret comes with the first commit of a store, and
stays as it is.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from ledgerq.eventlog import keys
from ledgerq.eventlog.events import (
    TEXT_FIELDS,
    BulkBegan,
    Cancelled,
    Deleted,
    Enqueued,
    Event,
    Record,
    Replaced,
    ScheduleEvent,
    ScheduleRemoved,
    ScheduleSet,
    Sealed,
    StepDone,
    Swept,
)
from ledgerq.eventlog.memory import MemoryDisk
from ledgerq.eventlog.side_records import PayloadRecord, decode_payload, decode_text
from tests.model.job import Violation

__all__ = ["SideRows"]

_CLIPPED = "..."
# ledgerq's own word, where a call was cancelled that had got claims.
_OWN = "the claim was cancelled"
# And where a tick replaced a job.
_REPLACED = "replaced by job "
Rows = Mapping[bytes, bytes | None]


class SideRows:
    """The checker of the rows beside the log. `given`: the texts that callers gave, with their job's id or queue."""

    def __init__(self, disk: MemoryDisk) -> None:
        self.given: set[tuple[bytes | str, str]] = set()
        self._disk = disk
        self._secret: bytes | None = None
        self._said: dict[int, str] = {}
        self._texts: dict[int, tuple[bytes | None, bytes]] = {}
        self._gone: list[int] = []
        self._settings: dict[str, int] = {}  # the text of each schedule's setting
        self._outdated: set[int] = set()  # of settings that were replaced in the commit that brought them
        self._bulks: set[int] = set()  # their reasons are those of many jobs

    def begin(self, changes: Rows) -> None:
        """Check what a change of the disk means for the secret."""
        if keys.SECRET_KEY in changes:
            secret = changes[keys.SECRET_KEY]
            if self._secret is not None or secret is None or len(secret) != keys.SECRET_BYTES:
                raise Violation("secret", f"the secret is written as {secret!r}, after {self._secret!r}")
            self._secret = secret
        if self._secret is None:
            raise Violation("secret", "a store is written that has no secret")

    def opened(
        self, offset: int, event: Event, changes: Rows, *, is_old: bool, newest: tuple[int, Enqueued | Replaced] | None
    ) -> tuple[Event, PayloadRecord | None]:
        """The event with its text and its unique key as they were given, and its payload.

        `is_old`: of format 2. `newest`: the last event of the commit that brings the job a payload, with its offset:
        one that is not this has replaced it.
        """
        if isinstance(event, Enqueued | Replaced):
            assert newest is not None
            record = self._payload(*newest, changes)
            if newest[0] != offset and keys.payload_key(offset) in changes:
                raise Violation("payload", f"the payload of {event} at {offset} is written, and was replaced")
            if isinstance(event, Enqueued) and not is_old:
                event = replace(event, unique_key=self._key(offset, event, record))
            return event, record if newest[0] == offset else None
        if isinstance(event, Swept | Deleted):
            mine = [at for at, (owner, _) in self._texts.items() if owner == event.id]
            self._gone += mine
            for at in mine:
                del self._texts[at]
        if isinstance(event, ScheduleSet | ScheduleRemoved):
            self._end_setting(event.name)
        if isinstance(event, StepDone) and event.value is not None:
            value = changes.get(keys.text_key(offset))
            if value is None or (_digest(value), len(value)) != (event.value.digest, event.value.size_bytes):
                raise Violation("step", f"{event} at {offset} came without its value, or with another")
            self._texts[offset] = (event.id, event.value.digest)
        name = TEXT_FIELDS.get(type(event))
        if name is None or is_old or not (text := getattr(event, name)):
            return event, None
        if not isinstance(text, Sealed):
            raise Violation("text", f"the text of {event} at {offset} stands in the log")
        if isinstance(event, ScheduleSet):
            self._settings[event.name] = offset
            if changes.get(keys.text_key(offset)) is None:
                self._outdated.add(offset)
                return event, None
        if text.at == offset:
            self._take(offset, event, text, changes)
        owner, digest = self._texts.get(text.at, (b"", b""))
        is_own = owner == getattr(event, "id", None) or text.at in self._bulks
        if not is_own or digest != text.digest:
            raise Violation("text", f"{event} at {offset} names a text that is none of its job's")
        return replace(event, **{name: self._said[text.at]}), None

    def _end_setting(self, name: str) -> None:
        """The text of a schedule's setting goes; one of this very commit never came."""
        at = self._settings.pop(name, None)
        if at in self._outdated:
            self._outdated.remove(at)
        elif at is not None:
            self._gone.append(at)
            del self._texts[at]

    def _take(self, offset: int, event: Any, text: Sealed, changes: Rows) -> None:
        """Take over a new text: it is there, by its digest, and is the one that somebody gave."""
        value = changes.get(keys.text_key(offset))
        if value is None or (_digest(value), len(value)) != (text.digest, text.size_bytes):
            raise Violation("text", f"{event} at {offset} came without its text, or with another")
        said, subject = decode_text(value), _subject(event)
        is_own = said == _OWN or (isinstance(event, Cancelled) and said.startswith(_REPLACED))
        if not is_own and not any(one == subject and _is_clipped(given, said) for one, given in self.given):
            raise Violation("text", f"{event} at {offset} has the text {said!r}, which nobody gave for it")
        if isinstance(event, BulkBegan):
            self._bulks.add(offset)
        self._said[offset] = said
        self._texts[offset] = (getattr(event, "id", None), text.digest)

    def _payload(self, offset: int, event: Enqueued | Replaced, changes: Rows) -> PayloadRecord:
        value = changes.get(keys.payload_key(offset))
        if value is None:
            raise Violation("payload", f"the job enqueued at {offset} came without its payload")
        if _digest(value) != event.payload_digest or len(value) != event.payload_bytes:
            raise Violation("payload", f"the payload of the job enqueued at {offset} is not that of its event")
        return decode_payload(value)

    def _key(self, offset: int, event: Enqueued, record: PayloadRecord) -> bytes | None:
        """The unique key that was given, which the event has as a digest."""
        key = record.unique_key
        digest = None if key is None else hashlib.blake2b(key, key=self._secret or b"", digest_size=32).digest()
        if event.unique_key != digest:
            raise Violation("unique", f"the job enqueued at {offset} has another digest of the key {key!r}")
        return key

    def end(self, changes: Rows) -> None:
        """Check that texts came and went with their events and jobs alone."""
        for key in (key for key in changes if key.startswith(keys.TEXT_PREFIX)):
            if (key in self._disk.rows) != (keys.offset_of(key) in self._texts):
                what = "is there, and no job has it" if key in self._disk.rows else "is gone, and its job is not"
                raise Violation("text", f"the text at {keys.offset_of(key)} {what}")
        if self._outdated:
            raise Violation("text", f"the settings of schedules at {sorted(self._outdated)} came without their texts")
        gone, self._gone = self._gone, []
        left = [at for at in gone if keys.text_key(at) in self._disk.rows]
        if left:
            raise Violation("text", f"a job was swept, or a setting ended, and its text at {left[0]} is still there")

    def check_everything(self) -> None:
        """Check that there are exactly the texts that there should be; raises `Violation`."""
        found = {keys.offset_of(k): _digest(v) for k, v in self._disk.rows.items() if k.startswith(keys.TEXT_PREFIX)}
        wanted = {at: digest for at, (_, digest) in self._texts.items()}
        if found != wanted:
            raise Violation("text", f"texts are at {sorted(found)}, should be at {sorted(wanted)}, or one was altered")
        if self._disk.rows.get(keys.SECRET_KEY) != self._secret:
            raise Violation("secret", "the secret is another one")

    def is_told(self, told: Record, record: Record) -> bool:
        """Whether a `record` of the log is told as it is: with its text, as long as that is there."""
        name = TEXT_FIELDS.get(type(record.event))
        text = None if name is None else getattr(record.event, name)
        if told == record:
            return not isinstance(text, Sealed) or text.at not in self._texts
        if name is None or not isinstance(text, Sealed):
            return False
        return told == record._replace(event=replace(record.event, **{name: self._said.get(text.at, text)}))

    def is_said(self, told: object, wanted: str) -> bool:
        """Whether a job's error is told as it is: as long as the text is there."""
        return told.at not in self._texts if isinstance(told, Sealed) else told == wanted


def _subject(event: Any) -> bytes | str:
    """What a text is about: a job, a schedule or a queue."""
    return event.name if isinstance(event, ScheduleEvent) else getattr(event, "id", None) or event.queue


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=32).digest()


def _is_clipped(given: str, said: str) -> bool:
    return given == said or (said.startswith(_CLIPPED) and given.endswith(said[len(_CLIPPED) :]))
