"""The events of the log itself: who wrote it, and what was done to its store."""

from ledgerq.eventlog.facts import Fact

__all__ = ["FilesSetAside", "LogEvent", "Rebuilt", "WriterClosed", "WriterOpened"]


class WriterOpened(Fact, frozen=True):
    """A writer took over the store. `rolled_back_from`: the offset of a loss that the user accepted, else None."""

    writer: str
    version: str
    rolled_back_from: int | None


class WriterClosed(Fact, frozen=True):
    """The writer ended in good order."""

    writer: str


class Rebuilt(Fact, frozen=True):
    """Projections were made anew from the log: `rows_put` and `rows_deleted` say how many rows that took.

    `names`: which; "the secret" is among them when the store's secret was missing, and a new one was made: a unique key
    has another digest from here on.
    """

    actor: str
    reason: str
    names: tuple[str, ...]
    rows_put: int
    rows_deleted: int


class FilesSetAside(Fact, frozen=True):
    """Files that kept the store from being opened, and that no promised commit needs, were moved out of its way.

    `folder` is where they are, below the store's. `total`: how many; `names`: the first hundred ("wal/000...1.sst").
    """

    folder: str
    total: int
    names: tuple[str, ...]


LogEvent = WriterOpened | WriterClosed | Rebuilt | FilesSetAside
