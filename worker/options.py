"""The options of a queue and of a job, checked at the edge. Times are in seconds, as people write them."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.eventlog.events import UniqueUntil
from ledgerq.eventlog.keys import MAX_PRIORITY
from ledgerq.projections.limits import MAX_COUNT
from ledgerq.worker.rates import parse_rate

__all__ = ["NewJob", "OnConflict", "QueueOptions", "seconds_ms", "to_ms"]

MAX_UNIQUE_KEY_BYTES = 1024
# The year 9999 in ms: what is later than that is a mistake in units.
MAX_TIME_MS = 253_402_300_800_000

Seconds = Annotated[float, Field(ge=0, le=MAX_TIME_MS / 1000, allow_inf_nan=False)]
RateText = Annotated[str, AfterValidator(lambda text: text if parse_rate(text) else "")]
Positive = Annotated[float, Field(ge=0.001, le=MAX_TIME_MS / 1000, allow_inf_nan=False)]


OnConflict = Literal["keep", "replace", "raise"]
"""What an enqueue does whose unique key is held: nothing; or it replaces what waits; or it raises `UniqueKeyHeld`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    if not TYPE_CHECKING:  # type checkers take the arguments from the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                found = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_input=False)]
                raise InvalidArgument(f"{type(self).__name__}: {'; '.join(found)}") from error


class QueueOptions(_Frozen):
    """The options of a queue. Changing an option never changes the past: events carry what was decided."""

    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] = 3
    """Claims before a failing job is dead; counts claims, not failures."""
    max_crashes: Annotated[int, Field(ge=1, le=1_000_000)] | None = 3
    """Tries in a row that ended their process, or their lease, before a job is dead whatever tries are left; None: no
    limit."""
    dead_letter_queue: Annotated[str, Field(min_length=1)] | None = None
    """The queue to which a job that dies is moved, in the same commit: it is pending there. None: it stays, as dead."""
    lease_s: Positive = 30.0
    """How long a claim holds without renewal."""
    priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] = 1000
    """Lower is handed out first."""
    backoff_base_s: Seconds = 1.0
    """A retry waits at most this, doubled with each attempt, with full jitter."""
    backoff_cap_s: Seconds = 300.0
    """And never longer than this."""
    keep_done_s: Seconds = 24 * 3600.0
    """How long a done job's record and payload stay; its history stays in the log."""
    keep_dead_s: Seconds = 7 * 24 * 3600.0
    """How long a dead job can be read and requeued."""
    keep_cancelled_s: Seconds = 24 * 3600.0
    """How long a cancelled job's record stays."""
    max_payload_bytes: Annotated[int, Field(ge=0, le=16 * 1024 * 1024)] = 1024 * 1024
    """Limit for the payload and its headers together, as stored."""
    max_running: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many jobs of the queue may be claimed at a time; None: any number."""
    rate: RateText | None = None
    """How many jobs may be claimed in which time: "600/min", "10/s", "100/10s"; None: any number."""
    burst: Annotated[int, Field(ge=1, le=MAX_COUNT)] | None = None
    """How many of the rate's claims may come at once; None: what comes in 50 ms, at least 1."""

    @property
    def has_limits(self) -> bool:
        """Whether it says how many jobs may be claimed."""
        return self.max_running is not None or self.rate is not None

    @model_validator(mode="after")
    def _burst_of_a_rate(self) -> "QueueOptions":
        if self.burst is not None and self.rate is None:
            raise ValueError("burst is that of a rate: give both")
        return self


class NewJob(_Frozen):
    """One job of `enqueue_many`: the same arguments as `enqueue` takes."""

    payload: bytes
    priority: Annotated[int, Field(ge=0, le=MAX_PRIORITY)] | None = None
    delay: Seconds | None = None
    run_at: datetime | None = None
    expires: Seconds | datetime | None = None
    deadline: Seconds | datetime | None = None
    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    unique_key: str | bytes | None = None
    unique_until: UniqueUntil = "finished"
    unique_for: Positive | None = None
    on_conflict: OnConflict = "keep"
    debounce: Positive | None = None
    debounce_max: Positive | None = None
    headers: Mapping[str, str] | None = None
    job_id: str | None = None
    task: str | None = None

    def __init__(self, payload: bytes, **kwargs: Any) -> None:
        super().__init__(**{"payload": payload, **kwargs})


def to_ms(seconds: float) -> int:
    """Whole milliseconds, rounded."""
    return round(seconds * 1000)


def seconds_ms(name: str, seconds: float, *, least_ms: int = 0) -> int:
    """An argument in seconds as whole milliseconds, at least `least_ms`; raises `InvalidArgument` for anything else."""
    number = not isinstance(seconds, bool) and isinstance(seconds, int | float)
    if not number or not least_ms <= seconds * 1000 <= MAX_TIME_MS:
        raise InvalidArgument(f"{name} is a number of seconds from {least_ms / 1000:g} on, not {seconds!r}")
    return to_ms(seconds)
