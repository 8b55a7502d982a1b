"""The texts and results beside the log: they are looked up for the jobs and events that name them."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.errors import LogPoisoned, ResultGone, RowUnreadable
from ledgerq.eventlog.events import TEXT_FIELDS, Record, Sealed, Text
from ledgerq.eventlog.keys import TEXT_PREFIX, after_prefix, offset_of, text_key
from ledgerq.eventlog.side_records import decode_result, decode_text
from ledgerq.eventlog.store import ReadStore
from ledgerq.projections.job import Job

__all__ = [
    "CHANGED",
    "MISSING",
    "StoredText",
    "jobs_with_texts",
    "read_result",
    "read_sealed",
    "records_with_texts",
    "stored_texts",
    "text_fault",
    "text_of",
]

MISSING: Final = "the text is missing"
UNREADABLE: Final = "the text can't be read: its block in a file of the store is damaged"
CHANGED: Final = "the text doesn't match its digest"
_PAGE_ROWS: Final = 256


class StoredText(NamedTuple):
    """A row of the text range: what the log has of it (None: nothing), its value, and what is wrong with that."""

    key: bytes
    sealed: Sealed | None
    value: bytes | None
    fault: str


def text_fault(sealed: Sealed, value: bytes | None) -> str:
    """Why the row found under the key of a text is not that text; empty when it is."""
    if value is None:
        return MISSING
    return "" if digest_of(value) == sealed.digest else CHANGED


async def stored_texts(store: ReadStore, wanted: Mapping[int, Sealed]) -> AsyncIterator[StoredText]:
    """Each row of the text range, and each text that is `wanted`, by offset, and has none that can be read."""
    left = dict(wanted)
    pages = store.scan(TEXT_PREFIX, after_prefix(TEXT_PREFIX), page_rows=_PAGE_ROWS)
    try:
        async for page in pages:
            for key, value in page:
                sealed = left.pop(offset_of(key), None) if key == text_key(offset_of(key)) else None
                yield StoredText(key, sealed, value, "" if sealed is None else text_fault(sealed, value))
    except LogPoisoned:
        pass  # a scan ends at the first block that can't be read: the rest is read one by one
    for at, sealed in sorted(left.items()):
        fault = ""
        try:
            found = await store.get(text_key(at))
        except RowUnreadable as error:
            found, fault = error.found, f"{UNREADABLE} ({error.where})"
        wrong = text_fault(sealed, found)
        yield StoredText(text_key(at), sealed, found, (fault or wrong) if wrong else "")


async def records_with_texts(store: ReadStore, records: Sequence[Record]) -> list[Record]:
    """The records with the texts that are still there in the place of what is `Sealed`."""
    texts = await _texts(store, (_text_of(record) for record in records))
    if not texts:
        return [*records]
    return [_with_text(record, texts) for record in records]


async def jobs_with_texts(store: ReadStore, jobs: Sequence[Job]) -> list[Job]:
    """The jobs with the texts that are still there in the place of what is `Sealed`."""
    found = await _texts(
        store, (text for job in jobs for text in (job.last_error, job.cancel_request and job.cancel_request[1]))
    )
    if not found:
        return [*jobs]
    with_texts: list[Job] = []
    for job in jobs:
        request = job.cancel_request
        if request is not None:
            request = (request[0], _or_text(request[1], found))
        with_texts.append(replace(job, last_error=_or_text(job.last_error, found), cancel_request=request))
    return with_texts


async def read_result(store: ReadStore, job: Job) -> bytes | None:
    """What the job's handler returned, None when it left nothing; raises `ResultGone` when that is lost."""
    return None if job.result is None else await read_sealed(store, job.result, f"the result of job {job.job_id}")


async def read_sealed(store: ReadStore, sealed: Sealed, what: str) -> bytes:
    """A result, or the value of a step; raises `ResultGone` when it is lost."""
    try:
        value = await store.get(text_key(sealed.at))
    except RowUnreadable as error:
        value = error.found
    if value is None or text_fault(sealed, value):
        raise ResultGone(
            f"{what} is not in the store any more: the job was swept, or the row at offset {sealed.at} is lost (an "
            "audit with --deep names what is); its history is still in the log"
        )
    return decode_result(value)


def _text_of(record: Record) -> Text | None:
    name = TEXT_FIELDS.get(type(record.event))
    return None if name is None else getattr(record.event, name)


def _with_text(record: Record, texts: dict[Sealed, str]) -> Record:
    name = TEXT_FIELDS.get(type(record.event))
    if name is None:
        return record
    text = _or_text(getattr(record.event, name), texts)
    return record._replace(event=replace(record.event, **{name: text}))


def _or_text(text: Text, texts: dict[Sealed, str]) -> Text:
    return texts.get(text, text) if isinstance(text, Sealed) else text


async def text_of(store: ReadStore, text: Text) -> str | None:
    """A text; None for one that is not there any more."""
    return text if isinstance(text, str) else (await _texts(store, [text])).get(text)


async def _texts(store: ReadStore, wanted: Iterable[Text | None]) -> dict[Sealed, str]:
    sealed = list({text: None for text in wanted if isinstance(text, Sealed)})
    values = await _values(store, [text_key(one.at) for one in sealed]) if sealed else []
    found: dict[Sealed, str] = {}
    for one, value in zip(sealed, values, strict=True):
        if value is not None and not text_fault(one, value):
            found[one] = decode_text(value)
    return found


async def _values(store: ReadStore, wanted: Sequence[bytes]) -> list[bytes | None]:
    """The rows of these texts. One whose block is damaged is as good as gone, and no reason to show nothing else."""
    try:
        return await store.get_many(wanted)
    except LogPoisoned:
        pass  # perhaps of one row only: they are read one by one
    values: list[bytes | None] = []
    for key in wanted:
        try:
            values.append(await store.get(key))
        except RowUnreadable as error:
            values.append(error.found)
    return values
