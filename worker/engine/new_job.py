"""The preparation of a job to be enqueued: arguments checked, payload sealed; and locks for unique keys."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple, get_args

from ledgerq.eventlog.blobs import BlobName
from ledgerq.eventlog.codec import digest_of
from ledgerq.eventlog.entropy import Entropy, job_id_bytes, new_job_id
from ledgerq.eventlog.errors import InvalidArgument, PayloadTooLarge
from ledgerq.eventlog.events import Enqueued, UniqueUntil
from ledgerq.eventlog.keys import MAX_PRIORITY
from ledgerq.eventlog.side_records import SALT_BYTES, PayloadRecord, encode_payload, key_digest
from ledgerq.eventlog.terms import JSON, Terms, encode_terms
from ledgerq.eventlog.writer import MAX_COMMIT_BYTES
from ledgerq.worker.engine.unique_keys import KEEP, Conflict, key_terms
from ledgerq.worker.options import (
    MAX_TIME_MS,
    MAX_UNIQUE_KEY_BYTES,
    NewJob,
    OnConflict,
    QueueOptions,
    seconds_ms,
    to_ms,
)

__all__ = ["KeyLocks", "Prepared", "due_ms_of", "is_list", "prepare", "prepare_many", "task_name"]

MAX_BULK_JOBS: Final = 10_000
MAX_TASK_NAME_BYTES: Final = 255
_AT_ONCE: Final = 50
_UNTIL: Final = get_args(UniqueUntil)


class StoredPayload(NamedTuple):
    """A payload that stands beside the store: its name, which has the job's id, its salt, what the log has of it."""

    name: BlobName
    salt: bytes
    blob: bytes


class Prepared(NamedTuple):
    """A job that can be enqueued: its event, its payload for the ready window, and the payload record for the store."""

    event: Enqueued
    record: PayloadRecord
    sealed: bytes
    own_id: bool
    conflict: Conflict = KEEP


def prepare(
    queue: str,
    payload: bytes,
    *,
    options: QueueOptions,
    now_ms: int,
    entropy: Entropy,
    secret: bytes,
    priority: int | None = None,
    delay: float | None = None,
    run_at: datetime | None = None,
    expires: float | datetime | None = None,
    deadline: float | datetime | None = None,
    max_attempts: int | None = None,
    unique_key: str | bytes | None = None,
    unique_until: UniqueUntil = "finished",
    unique_for: float | None = None,
    on_conflict: OnConflict = "keep",
    debounce: float | None = None,
    debounce_max: float | None = None,
    headers: Mapping[str, str] | None = None,
    job_id: str | None = None,
    task: str | None = None,
    stored: StoredPayload | None = None,
) -> Prepared:
    """Check every argument and build the enqueued event; raises `InvalidArgument` naming what is wrong."""
    if type(payload) is not bytes:
        payload = _plain(payload)
    if priority is None:
        priority = options.priority
    else:
        _whole("priority", priority, 0, MAX_PRIORITY)
    if max_attempts is None:
        max_attempts = options.max_attempts
    else:
        _whole("max_attempts", max_attempts, 1, 1_000_000)
    conflict, hold_ms = KEEP, 0
    if unique_key is not None or not (unique_for is debounce is debounce_max is None and on_conflict == "keep"):
        delay, unique_until, conflict, hold_ms = key_terms(
            *(unique_key, unique_until, unique_for, on_conflict, debounce, debounce_max),
            *(delay, run_at, now_ms, options),
        )
    due_ms = 0 if delay is None and run_at is None else due_ms_of(delay, run_at, now_ms)
    terms = None
    if hold_ms or task is not None or expires is not None or deadline is not None or stored is not None:
        terms = _terms(task, expires, deadline, hold_ms, b"" if stored is None else stored.blob, due_ms, now_ms)
    kept, header_bytes = _headers(headers) if headers else (None, 0)
    if (size_bytes := len(payload) + header_bytes) > options.max_payload_bytes:
        raise PayloadTooLarge(
            f"the payload and headers for queue {queue!r} have {size_bytes} bytes, more than max_payload_bytes="
            f"{options.max_payload_bytes}: store them elsewhere and enqueue a reference"
        )
    key = None if unique_key is None else _unique_key(unique_key)
    salt = entropy.take(SALT_BYTES) if stored is None else stored.salt
    sealed = encode_payload(salt, kept, payload, key)
    if unique_until not in _UNTIL:
        raise InvalidArgument(f"unique_until is 'finished', 'claimed' or 'period', not {unique_until!r}")
    event = Enqueued(
        _new_id(now_ms, entropy, stored) if job_id is None else job_id_bytes(job_id),
        queue,
        priority,
        max_attempts,
        due_ms,
        None if key is None else key_digest(key, secret),
        unique_until,
        len(sealed),
        digest_of(sealed),
        terms,
    )
    return Prepared(event, PayloadRecord(salt, kept, payload, key), sealed, job_id is not None, conflict)


def _terms(
    task: str | None,
    expires: float | datetime | None,
    deadline: float | datetime | None,
    hold_ms: int,
    blob: bytes,
    due_ms: int,
    now_ms: int,
) -> bytes:
    expires_ms, deadline_ms = moment_ms("expires", expires, now_ms), moment_ms("deadline", deadline, now_ms)
    if due_ms and 0 < min(expires_ms or deadline_ms, deadline_ms or expires_ms) <= due_ms:
        raise InvalidArgument("the job would be due only when it has expired: expires and deadline are from now on")
    return encode_terms(Terms("" if task is None else task_name(task), JSON, expires_ms, deadline_ms, hold_ms, blob))


def _new_id(now_ms: int, entropy: Entropy, stored: StoredPayload | None) -> bytes:
    return new_job_id(now_ms, entropy) if stored is None else stored.name.job


def is_list(jobs: object) -> bool:
    """Whether these can be the jobs of one `enqueue_many`: in an order, and not one payload."""
    return isinstance(jobs, Sequence) and not isinstance(jobs, str | bytes | bytearray | memoryview)


async def prepare_many(
    queue: str, jobs: Sequence[bytes | NewJob], *, options: QueueOptions, now_ms: int, entropy: Entropy, secret: bytes
) -> list[Prepared]:
    """Prepare the jobs of one `enqueue_many`; raises `InvalidArgument` for more than one commit can take.

    A few at a time: many would hold the event loop for a tenth of a second and more.
    """
    if not is_list(jobs):
        raise InvalidArgument(f"enqueue_many takes a list of jobs, not {type(jobs).__name__}")
    if len(jobs) > MAX_BULK_JOBS:
        raise InvalidArgument(f"enqueue_many takes up to {MAX_BULK_JOBS} jobs, not {len(jobs)}: split them")
    batch: list[Prepared] = []
    size_bytes = 0
    for at, job in enumerate(list(jobs)):
        if at and at % _AT_ONCE == 0:
            await asyncio.sleep(0)
        given = dict(job) if isinstance(job, NewJob) else {"payload": job}
        try:
            one = prepare(queue, options=options, now_ms=now_ms, entropy=entropy, secret=secret, **given)
        except (InvalidArgument, PayloadTooLarge) as error:
            raise type(error)(f"jobs[{at}]: {error}") from error
        batch.append(one)
        size_bytes += len(batch[-1].sealed)
    if size_bytes > MAX_COMMIT_BYTES:
        raise PayloadTooLarge(
            f"the payloads of one enqueue_many have {size_bytes} bytes, more than {MAX_COMMIT_BYTES}: split them"
        )
    return batch


def due_ms_of(delay: float | None, run_at: datetime | None, now_ms: int) -> int:
    """When the job is due, in ms since the Unix epoch; 0 when that is not later than now."""
    if delay is not None and run_at is not None:
        raise InvalidArgument("give delay or run_at, not both")
    if run_at is not None:
        if not isinstance(run_at, datetime) or run_at.utcoffset() is None:
            raise InvalidArgument(f"run_at is a datetime with a time zone, not {run_at!r}: add tzinfo, say UTC")
        due_ms = to_ms(run_at.timestamp())
    else:
        if isinstance(delay, bool) or not isinstance(delay, int | float) or not 0 <= delay <= MAX_TIME_MS / 1000:
            raise InvalidArgument(f"delay is a number of seconds from 0 on, not {delay!r}")
        due_ms = now_ms + to_ms(delay)
    if due_ms > MAX_TIME_MS:
        raise InvalidArgument("the job would be due after the year 9999: delay is in seconds")
    return due_ms if due_ms > now_ms else 0


def moment_ms(name: str, moment: float | datetime | None, now_ms: int) -> int:
    """A time, or one in so many seconds, in ms since the Unix epoch; 0 for None."""
    if moment is None:
        return 0
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise InvalidArgument(f"{name} needs a time zone, {moment!r} has none: add tzinfo, say UTC")
        return max(1, to_ms(moment.timestamp()))
    return max(1, now_ms + seconds_ms(name, moment))


def _plain(payload: object) -> bytes:
    if not isinstance(payload, bytes | bytearray | memoryview):
        raise InvalidArgument(f"a payload is bytes, not {type(payload).__name__}: encode it first")
    try:
        return bytes(payload)
    except ValueError as error:  # a memoryview that was released
        raise InvalidArgument(f"the payload can't be read: {error}") from error


def _whole(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(f"{name} is a whole number from {low} to {high}, not {value!r}")


def _headers(headers: Mapping[str, str]) -> tuple[dict[str, str], int]:
    try:
        kept, size_bytes = dict(headers), 0
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"headers map text to text, {headers!r} is no mapping") from error
    for name, value in kept.items():
        try:
            size_bytes += len(name.encode()) + len(value.encode())
        except (AttributeError, UnicodeEncodeError) as error:
            raise InvalidArgument(f"headers map text to text in UTF-8; {name!r}: {value!r} does not") from error
    return kept, size_bytes


def _unique_key(key: str | bytes) -> bytes:
    try:
        encoded = key.encode() if isinstance(key, str) else bytes(memoryview(key))
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"unique_key {key!r} is neither bytes nor text that UTF-8 can hold") from error
    if not 1 <= len(encoded) <= MAX_UNIQUE_KEY_BYTES:
        raise InvalidArgument(f"unique_key has {len(encoded)} bytes: 1 to {MAX_UNIQUE_KEY_BYTES} are allowed")
    return encoded


def task_name(task: str) -> str:
    """The name of a task, checked."""
    try:
        if 1 <= len(task.encode()) <= MAX_TASK_NAME_BYTES and "\0" not in task:
            return task
    except (AttributeError, UnicodeEncodeError):
        pass
    raise InvalidArgument(f"a task's name is text of 1 to {MAX_TASK_NAME_BYTES} bytes without NUL, not {task!r}")


class KeyLocks:
    """One lock per key, for as long as a call holds or awaits it: look-up and staging must not be interleaved."""

    def __init__(self) -> None:
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, keys: Iterable[bytes]) -> AsyncIterator[None]:
        """Hold all `keys`; taken in order, so that two holders of several never wait for each other."""
        held: list[bytes] = []
        try:
            for key in sorted(set(keys)):
                lock, users = self._locks.get(key) or (asyncio.Lock(), 0)
                self._locks[key] = (lock, users + 1)
                try:
                    await lock.acquire()
                except BaseException:
                    self._leave(key)
                    raise
                held.append(key)
            yield
        finally:
            for key in reversed(held):
                self._locks[key][0].release()
                self._leave(key)

    def _leave(self, key: bytes) -> None:
        lock, users = self._locks[key]
        if users == 1:
            del self._locks[key]
        else:
            self._locks[key] = (lock, users - 1)
