"""The options of a SlateDB store, and the SlateDB settings that they stand for."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from slatedb.uniffi import DbCache, FoyerCacheOptions, Settings

from ledgerq.eventlog.errors import InvalidArgument

__all__ = ["DEFAULT_LEASE_S", "MAX_LEASE_S", "StoreOptions"]

DEFAULT_LEASE_S: Final = 15.0
MAX_LEASE_S: Final = 3600.0
_MIB: Final = 1024 * 1024
_MAX_BYTES: Final = 2**40
_MAX_SECONDS_S: Final = 10**9
# Each core of a large machine would get a shard of its own otherwise; two keep the cache's share per shard useful.
_CACHE_SHARDS: Final = 2


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store is opened for writing. The defaults keep memory modest: about 140 MB for a busy queue.

    `fsync` makes a commit on a file store survive a power cut (about 0.3 ms each); object stores need none.
    `open_timeout_s` bounds opening, and then the wait for each file that an earlier writer left and that has to be
    synced, `commit_timeout_s` the wait for one write or flush (then `OutcomeUnknown`), `read_timeout_s` that for one
    read of a key or a page of rows (then `StoreUnavailable`: try again later). `cache_bytes` is for blocks read back,
    `l0_sst_bytes` the size at which written data moves from the write-ahead log to a sorted file, `max_unflushed_bytes`
    the size of what is not yet durable before writes wait. `max_wal_flushes_before_l0_flush` bounds how many log files
    an opener must read after a crash (None: 1,000 on a file store, 128 on an object store, where each costs a request).
    Every `gc_interval_s` files are removed, `gc_age_s` after their last use. `lease_s` (1 to 3,600): for so long an
    object store's writer counts as alive after it last renewed its lease, which it does by one write in a third of
    that. `settings` are settings of SlateDB itself, by their dotted names.
    """

    fsync: bool = True
    open_timeout_s: float = 30.0
    commit_timeout_s: float = 60.0
    read_timeout_s: float = 30.0
    cache_bytes: int = 32 * _MIB
    l0_sst_bytes: int = 8 * _MIB
    max_unflushed_bytes: int = 32 * _MIB
    max_wal_flushes_before_l0_flush: int | None = None
    gc_interval_s: float = 60.0
    gc_age_s: float = 60.0
    lease_s: float = DEFAULT_LEASE_S
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what can't work, before anything is opened."""
        for name in ("open_timeout_s", "commit_timeout_s", "read_timeout_s", "gc_interval_s", "gc_age_s"):
            if not (_is_number(getattr(self, name)) and 0 < getattr(self, name) <= _MAX_SECONDS_S):
                raise InvalidArgument(
                    f"{name} must be above 0 seconds and at most {_MAX_SECONDS_S}, not {getattr(self, name)!r}"
                )
        if not (_is_number(self.lease_s) and 1 <= self.lease_s <= MAX_LEASE_S):
            raise InvalidArgument(f"lease_s must be from 1 to {MAX_LEASE_S:g} seconds, not {self.lease_s!r}")
        for name in ("cache_bytes", "l0_sst_bytes", "max_unflushed_bytes"):
            if not (type(getattr(self, name)) is int and _MIB <= getattr(self, name) <= _MAX_BYTES):
                raise InvalidArgument(f"{name} must be at least 1 MiB in whole bytes, not {getattr(self, name)!r}")
        flushes = self.max_wal_flushes_before_l0_flush
        if flushes is not None and not (type(flushes) is int and flushes >= 1):
            raise InvalidArgument(f"max_wal_flushes_before_l0_flush must be at least 1, not {flushes!r}")

    def slate_values(self, *, embedded_gc: bool) -> dict[str, Any]:
        """SlateDB's settings that differ from its defaults; with `embedded_gc` it removes old files by itself."""
        values: dict[str, Any] = {
            # Every commit is flushed explicitly; a timer would only add PUTs. A full WAL buffer still flushes itself.
            "flush_interval": None,
            "l0_sst_size_bytes": self.l0_sst_bytes,
            "max_unflushed_bytes": self.max_unflushed_bytes,
            # At 8 sorted files SlateDB stalls writes until the compactor looks again: let it look more often.
            "l0_max_ssts": 16,
            "l0_max_ssts_per_key": 16,
            "compactor_options.poll_interval": "1s",
            "compactor_options.worker.compactions_poll_interval": "1s",
            "compactor_options.worker.max_sst_size": 64 * _MIB,
        }
        if embedded_gc:
            interval, age = f"{round(self.gc_interval_s * 1000)}ms", f"{round(self.gc_age_s * 1000)}ms"
            # wal_fence_options stay at their default, dry_run: that collector can lose acknowledged writes.
            for kind in ("manifest", "wal", "compacted", "compactions"):
                values[f"garbage_collector_options.{kind}_options.interval"] = interval
                values[f"garbage_collector_options.{kind}_options.min_age"] = age
        else:
            values["garbage_collector_options"] = None
        values.update(self.settings)
        return values

    def slate_settings(self, *, embedded_gc: bool) -> Settings:
        """SlateDB's `Settings`; raises `InvalidArgument` when one of `settings` is unknown to SlateDB."""
        tree = json.loads(Settings.default().to_json_string())
        for name, value in self.slate_values(embedded_gc=embedded_gc).items():
            _set(tree, name, value)
        return Settings.from_json_string(json.dumps(tree))

    def new_cache(self) -> DbCache:
        """A cache of `cache_bytes` for one database; an eighth of it is kept for indexes and filters."""
        meta_bytes = self.cache_bytes // 8
        blocks = FoyerCacheOptions(max_capacity=self.cache_bytes - meta_bytes, shards=_CACHE_SHARDS)
        meta = FoyerCacheOptions(max_capacity=meta_bytes, shards=_CACHE_SHARDS)
        return DbCache.new_split_cache(DbCache.new_foyer_cache(blocks), DbCache.new_foyer_cache(meta))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _set(tree: dict[str, Any], name: str, value: Any) -> None:
    # SlateDB takes unknown settings without a word, so a misspelt one must be caught here.
    *folders, leaf = name.split(".")
    place: Any = tree
    for folder in folders:
        place = place.get(folder) if isinstance(place, dict) else None
    if not isinstance(place, dict) or leaf not in place:
        raise InvalidArgument(f"SlateDB has no setting {name!r}")
    place[leaf] = value
