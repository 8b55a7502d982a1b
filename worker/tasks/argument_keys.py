"""Unique keys made of a task's arguments."""

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from hashlib import blake2b
from typing import Any, Final, Literal

from pydantic import TypeAdapter

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.tasks.signature import Signature

__all__ = ["Unique", "argument_key", "unique_names"]

Unique = Literal["args"] | Sequence[str]
"""The arguments that a unique key is made of: all, or those of these names."""

_KEY_BYTES: Final = 32
_ANY: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def unique_names(unique: Unique | None, signature: Signature) -> tuple[str, ...] | None:
    """The names of the arguments that a key is made of; None for no key. Raises `InvalidArgument`."""
    if unique is None:
        return None
    if unique == "args":
        return signature.names
    if isinstance(unique, str) or not isinstance(unique, Sequence) or not unique:
        raise InvalidArgument(f'unique is "args", or the names of arguments as in ("user_id",), not {unique!r}')
    if unknown := [name for name in unique if name not in signature.names]:
        raise InvalidArgument(f"unique names {', '.join(map(repr, unknown))}, and the task has no such argument")
    return tuple(unique)


def argument_key(task: str, names: Sequence[str], signature: Signature, payload: bytes) -> bytes:
    """The unique key of a job: a BLAKE2b-256 of the task's name and these of its arguments, as JSON in one form.

    Equal arguments have equal keys, however they are given: by position or name, or left to their defaults.
    """
    arguments = signature.plain(payload)
    text = json.dumps([task, *([name, _in_order(arguments[name])] for name in sorted(names))])
    return blake2b(text.encode(), digest_size=_KEY_BYTES).digest()


def _in_order(value: Any) -> Any:
    """A value as JSON has it, with what has no order put in one."""
    if isinstance(value, Mapping):
        return sorted(([_in_order(key), _in_order(one)] for key, one in value.items()), key=json.dumps)
    if isinstance(value, AbstractSet):
        return sorted((_in_order(one) for one in value), key=json.dumps)
    if isinstance(value, list | tuple):
        return [_in_order(one) for one in value]
    return value.hex() if isinstance(value, bytes) else _ANY.dump_python(value, mode="json")
