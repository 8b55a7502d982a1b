"""Type checks of decoded records by their *shapes*: the types that the fields may have together, from annotations.

The types are exact (`True` is no number here), as msgpack gives them back. The meaning of a number or a text is not
checked here: that is for the fold.
"""

from functools import cache
from itertools import product
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

__all__ = ["checked", "plain_shapes"]

Shape = tuple[type[Any], ...]


class _Fields(NamedTuple):
    """`tuples`: which fields may be tuples, and of what: `(int, ...)`, `(str, str)`."""

    types: dict[str, Shape]
    shapes: frozenset[Shape]
    tuples: tuple[tuple[int, tuple[Any, ...]], ...]


def plain_shapes(record_type: Any) -> frozenset[Shape]:
    """Every shape of a `NamedTuple`; none where a field is a tuple, whose type leaves that of its items open."""
    fields = _fields(record_type)
    return frozenset() if fields.tuples else fields.shapes


def checked(record_type: Any, row: Any) -> Any:
    """The record with these fields; raises `ValueError` when their types are not its own."""
    fields = _fields(record_type)
    if type(row) is not tuple or len(row) != len(fields.types):
        raise ValueError(f"{len(fields.types)} fields were expected")
    if tuple(map(type, row)) not in fields.shapes:
        wrong = next(
            (name, v) for v, (name, types) in zip(row, fields.types.items(), strict=True) if type(v) not in types
        )
        raise ValueError(f"{wrong[0]} can't be {type(wrong[1]).__name__}")
    for place, parts in fields.tuples:
        items = row[place]
        if not items and (items is None or parts[-1] is Ellipsis):
            continue
        found = tuple(map(type, items))
        if set(found) - {parts[0]} if parts[-1] is Ellipsis else found != parts:
            raise ValueError(f"{list(fields.types)[place]} holds what it can't")
    return tuple.__new__(record_type, row)


@cache
def _fields(record_type: Any) -> _Fields:
    hints = get_type_hints(record_type)
    types = {name: _types(hint) for name, hint in hints.items()}
    # A field that is a record with annotations of its own is not checked any further here.
    tuples = [
        (place, get_args(part))
        for place, hint in enumerate(hints.values())
        for part in (hint, *get_args(hint))
        if get_origin(part) is tuple
    ]
    return _Fields(types, frozenset(product(*types.values())), tuple(tuples))


def _types(hint: Any) -> Shape:
    """The types that a field may have: `bytes | None`, a `Literal` of texts, `tuple[str, ...]`, a type."""
    if isinstance(hint, UnionType):
        return tuple(found for part in get_args(hint) for found in _types(part))
    if get_origin(hint) is Literal:
        return tuple({type(value) for value in get_args(hint)})
    found: type[Any] = get_origin(hint) or hint
    return (found,)
