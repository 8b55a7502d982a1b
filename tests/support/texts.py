"""Events with the texts that stand beside the log, read from the rows of a disk."""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from ledgerq.eventlog.events import TEXT_FIELDS, Event, Sealed
from ledgerq.eventlog.keys import text_key
from ledgerq.eventlog.side_records import decode_text

__all__ = ["with_texts"]


def with_texts(rows: Mapping[bytes, bytes], events: Iterable[Event]) -> list[Event]:
    """The events; a text that is not there stays sealed."""
    found: list[Event] = []
    for event in events:
        name = TEXT_FIELDS.get(type(event))
        text = None if name is None else getattr(event, name)
        if name is not None and isinstance(text, Sealed) and (row := rows.get(text_key(text.at))) is not None:
            event = replace(event, **{name: decode_text(row)})
        found.append(event)
    return found
