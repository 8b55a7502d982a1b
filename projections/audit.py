"""The audit: whether the log is unchanged, and every other row of the store is what follows from it.

It verifies the hash chain, folds the log, and compares every index row, every counter, and on request
every payload and text (deep_audit.py).
It only reads, from a store opened at one commit, so a running queue can be audited.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final, NamedTuple

from msgspec.structs import asdict

from ledgerq.eventlog import keys
from ledgerq.eventlog.clock import Clock
from ledgerq.eventlog.codec import pack, unpack
from ledgerq.eventlog.entropy import job_id_text
from ledgerq.eventlog.errors import LogPoisoned, ProjectionDrift
from ledgerq.eventlog.events import STATES, Sealed
from ledgerq.eventlog.log import LogReader, Progress, Verified
from ledgerq.eventlog.recorded_audit import RecordedAudit
from ledgerq.eventlog.recovery.log_end import readable_part
from ledgerq.eventlog.recovery.store_files import FileFault
from ledgerq.eventlog.store import Anchor, ReadStore
from ledgerq.projections.deep_audit import (
    Difference,
    blob_differences,
    missing_secret,
    payload_differences,
    text_differences,
    value_differences,
)
from ledgerq.projections.fold import Fold
from ledgerq.projections.index_keys import INDEX_PREFIX, ULID_BYTES, parse_key
from ledgerq.projections.indexes import decode_job
from ledgerq.projections.limits import LimitTable
from ledgerq.projections.repair.comparison import (
    FirstPlaces,
    Mismatch,
    compare_hints,
    compare_jobs,
    compare_limits,
    compare_projection,
    compare_schedules,
    compare_stats,
)
from ledgerq.projections.replay import fold_verified
from ledgerq.projections.runner import Projection, ProjectionHost
from ledgerq.projections.schedule import Schedule
from ledgerq.projections.shares.proof import Proof, prove_clean
from ledgerq.projections.shares.share import usable_jobs
from ledgerq.projections.stats import QueueCounters

__all__ = ["AuditReport", "Difference", "audit", "describe", "gathered", "limits_as_rows", "schedules_as_rows"]

_MAX_DIFFERENCES: Final = 1000
_MAX_TEXT_CHARS: Final = 400
OTHER_ANCHOR: Final = (
    "If the anchor given is one of this very store, restore the store from a copy that holds the commit; this one is "
    "evidence, so keep it as it is"
)


class AuditReport(NamedTuple):
    """An audit's report: what it proved and found. `differences` has the first 1,000, `difference_count` counts all.

    `unreadable`: why the log can't be read from the end of what is `verified` on; then nothing was compared.
    `damaged_files`: files with a part that can't be read. `lost_payloads`: jobs whose payload the log records as lost;
    that they have none is no difference. `counters` are the rows that the log's counters make, by queue, `schedules`
    those of schedules, by name, `limits` those of limits, by queue. `since`: the audit that this one
    started from; then `verified` counts the batches from there on, and `jobs` those with an event since.
    """

    location: str
    verified: Verified
    anchor: Anchor | None
    jobs: int
    payloads: int
    differences: list[Difference]
    difference_count: int
    format_version: int = keys.FORMAT_VERSION
    unreadable: str = ""
    damaged_files: tuple[FileFault, ...] = ()
    lost_payloads: int = 0
    counters: dict[str, bytes] | None = None
    schedules: dict[str, bytes] = {}  # noqa: RUF012 - never changed
    limits: dict[str, bytes] = {}  # noqa: RUF012 - never changed
    since: RecordedAudit | None = None

    @property
    def clean(self) -> bool:
        """Whether nothing differs and everything can be read."""
        return not (self.problem_count or self.unreadable)

    @property
    def problem_count(self) -> int:
        """The number of rows that differ and of damaged files."""
        return self.difference_count + len(self.damaged_files)


INTERRUPTED_REBUILD: Final = Difference(
    "meta", "m/rebuild", keys.REBUILD_KEY, None, "an interrupted rebuild: run rebuild-projections again"
)


async def audit(
    store: ReadStore,
    *,
    clock: Clock,
    deep: bool = False,
    anchor: Anchor | None = None,
    projections: Iterable[Projection] = (),
    jobs: int | None = 1,
    progress: Progress | None = None,
) -> AuditReport:
    """Audit a store; `deep` reads every live payload, `anchor` is a copy kept elsewhere (else the store's own is used).

    `jobs`: the number of processes that may work on it, for a store in a folder or a bucket; None: one for each core
    where there are 4 to 8, if the log is long enough to be worth it. With `deep` or with projections it is one. The
    report is the same; where something differs the log is read a second time, by one process.

    Every block of the files that the store needs is checked: of a store in a bucket, where they must be fetched, only
    when `deep`. A log that can't be read to its end is reported as far as it is proven.

    Raises `LogCorrupt` or `LogRolledBack` when the log itself can't be trusted: then there is nothing to compare with.
    `ShareFailed`: one of several processes ended early.
    """
    log = LogReader(store, clock=clock)
    remedy = "" if anchor is None else OTHER_ANCHOR
    damaged = tuple(await store.damaged_files(remote=deep))
    try:
        anchor = anchor or await store.read_anchor()
        format_version = await log.require_format()
        await log.check_anchor(anchor, remedy=remedy)
        host = ProjectionHost(projections)
        if not deep and not host.projections:
            processes = await usable_jobs(log, jobs)
            proof = await prove_clean(log, processes, format_version, progress=progress) if processes > 1 else None
            if proof is not None:
                return _clean_report(store.location, proof, anchor, format_version, damaged)
        rows: dict[bytes, bytes | None] = {}
        for projection in host.projections.values():
            projection.restore({})
        given = host if host.projections else None
        verified, fold = await fold_verified(log, host=given, rows=rows, progress=progress)
    except LogPoisoned as error:
        verified = await readable_part(store)
        why = str(error)
        return AuditReport(store.location, verified, anchor, 0, 0, [], 0, unreadable=why, damaged_files=damaged)
    host.require_sound(host.projections)
    found, count = await gathered(_differences(store, fold, host, rows, deep, format_version))
    job_count, counters = len(fold.jobs), _rows_of(fold.counters, format_version)
    payloads = job_count if deep else 0
    report = AuditReport(store.location, verified, anchor, job_count, payloads, found, count, format_version)
    report = report._replace(damaged_files=damaged, lost_payloads=len(fold.without_payload), counters=counters)
    return report._replace(schedules=schedules_as_rows(fold.schedules), limits=limits_as_rows(fold.limits))


def _clean_report(
    location: str, proof: Proof, anchor: Anchor | None, format_version: int, damaged: tuple[FileFault, ...]
) -> AuditReport:
    report = AuditReport(location, proof.verified, anchor, proof.jobs, 0, [], 0, format_version, damaged_files=damaged)
    report = report._replace(lost_payloads=proof.lost_payloads, schedules=schedules_as_rows(proof.schedules))
    return report._replace(counters=_rows_of(proof.counters, format_version), limits=limits_as_rows(proof.limits))


def schedules_as_rows(schedules: dict[str, Schedule]) -> dict[str, bytes]:
    """The row of each schedule by its name."""
    return {name: pack(schedule) for name, schedule in schedules.items()}


def limits_as_rows(limits: LimitTable) -> dict[str, bytes]:
    """The row of the limits of each queue by its name."""
    return {queue: pack(one) for queue, one in limits.by_queue.items()}


def _rows_of(counters: dict[str, QueueCounters], format_version: int) -> dict[str, bytes]:
    return {queue: counted.encode(format_version) for queue, counted in counters.items()}


async def gathered(differences: AsyncIterator[Difference]) -> tuple[list[Difference], int]:
    """The first 1,000 differences, and how many there are."""
    found: list[Difference] = []
    count = 0
    async for difference in _as_far_as_readable(differences):
        count += 1
        if len(found) < _MAX_DIFFERENCES:
            found.append(difference)
    return found, count


async def _as_far_as_readable(differences: AsyncIterator[Difference]) -> AsyncIterator[Difference]:
    """Yield the differences, and a last one when rows can't be read."""
    try:
        async for difference in differences:
            yield difference
    except LogPoisoned as error:
        yield Difference("store", "rows of indexes or payloads", b"", "rows that can be read", str(error))


async def _differences(
    store: ReadStore,
    fold: Fold,
    host: ProjectionHost,
    rows: dict[bytes, bytes | None],
    deep: bool,
    format_version: int,
) -> AsyncIterator[Difference]:
    if await store.get(keys.REBUILD_KEY) is not None:
        yield INTERRUPTED_REBUILD
    if (secret := await missing_secret(store, format_version)) is not None:
        yield secret
    first: FirstPlaces = {}
    jobs, stats = compare_jobs(store, fold, first, format_version), compare_stats(store, fold, format_version)
    others = (compare_hints(store, first), compare_schedules(store, fold), compare_limits(store, fold))
    for mismatches in (jobs, stats, *others):
        async for some in mismatches:
            for mismatch in some:
                yield describe(mismatch)
    for name in host.projections:
        async for some in compare_projection(store, name, rows):
            for mismatch in some:
                yield describe(mismatch)
    async for difference in value_differences(store, fold.values):
        yield difference
    if deep:
        deep_ones = (payload_differences, text_differences, blob_differences)
        for differences in (one(store, fold) for one in deep_ones):
            async for difference in differences:
                yield difference


def describe(mismatch: Mismatch) -> Difference:
    """A mismatch in words."""
    key = mismatch.key
    if key.startswith(INDEX_PREFIX):
        parsed = parse_key(key, mismatch.expected if mismatch.expected is not None else mismatch.found or b"")
        range_name, text = parsed.range_name, parsed.text
    elif key.startswith(keys.HINT_PREFIX):
        range_name, text = "hint", f"queue {keys.hint_queue(key, 'replace')!r}"
    elif key.startswith(keys.PROJECTION_PREFIX):
        who = key[len(keys.PROJECTION_PREFIX) :].decode("utf-8", "replace")
        offsets = [None if value is None else str(int.from_bytes(value)) for value in mismatch[1:]]
        return Difference(f"projection {who}", "the offset that it has applied", key, *offsets)
    else:
        name, _, rest = key[len(keys.ROWS_PREFIX) :].partition(b"\0")
        range_name, text = f"projection {name.decode('utf-8', 'replace')}", repr(rest)
    return Difference(range_name, text, key, *_both_sides(range_name, mismatch))


def _both_sides(range_name: str, mismatch: Mismatch) -> tuple[str | None, str | None]:
    """The texts of the expected and the found value; of two rows with named fields, only the fields that differ."""
    expected, found = _fields(range_name, mismatch.expected), _fields(range_name, mismatch.found)
    if expected is not None and found is not None:
        names = [name for name in expected if expected[name] != found[name]]
        # The same in other bytes: then the bytes are what differs.
        expected, found = ({n: side[n] for n in names} if names else None for side in (expected, found))
    texts = [
        _readable(range_name, value) if fields is None else _bounded(", ".join(f"{n}={v}" for n, v in fields.items()))
        for value, fields in ((mismatch.expected, expected), (mismatch.found, found))
    ]
    return texts[0], texts[1]


def _fields(range_name: str, value: bytes | None) -> dict[str, str] | None:
    """The fields of a job's or a counters' row by name; None for other rows, and for what can't be decoded."""
    try:
        if value is not None and range_name == "job":
            fields = asdict(decode_job(value))
            # The fields that people read first.
            return {name: _text(fields[name]) for name in ("state", "last_error", *fields) if name != "spec"} | {
                name: _text(part) for name, part in asdict(fields["spec"]).items()
            }
        if value is not None and range_name == "stats":
            counters = QueueCounters.decode(value)
            stats = counters.view("")
            now = {state: str(getattr(stats, state)) for state in STATES}
            totals = {f"{name} in all": str(total) for name, total in stats.totals.items()}
            times = {
                f"{name} (buckets, sum)": f"{view.counts}, {view.sum}" for name, view in counters.measures().items()
            }
            return now | totals | {"paused": str(stats.paused), "first offset": str(counters.first_offset)} | times
    except (ProjectionDrift, AttributeError, TypeError):
        pass  # shown as it is
    return None


def _text(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value) if isinstance(value, Sealed) else repr(value)


def _readable(range_name: str, value: bytes | None) -> str | None:
    if value is None:
        return None
    if len(value) == 0:
        return "(empty)"
    if range_name in ("pending", "scheduled", "dead", "unique") and len(value) == ULID_BYTES:
        return f"job {job_id_text(value)}"
    try:
        unpacked = unpack(value)
        text = repr(unpacked) if isinstance(unpacked, tuple) else value.hex()
    except ValueError:
        text = value.hex()
    return _bounded(text)


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARS else text[: _MAX_TEXT_CHARS - 3] + "..."
