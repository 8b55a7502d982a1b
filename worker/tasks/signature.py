"""The signature of a task: its arguments and its result, checked by pydantic, as JSON."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Union, get_args, get_origin

from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import ArgumentsDontFit
from ledgerq.worker.returned import JSON_CONFIG, ReturnType, found_wrong, hides, hints_of

__all__ = ["Signature"]

_CONFIG: Final = ConfigDict(extra="forbid", **JSON_CONFIG)
_NO_NAME: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Signature:
    """The signature of a function: one model of its arguments and one of its result, made once.

    A parameter that is annotated as a `JobContext` gets the job, and is none of the arguments.
    """

    def __init__(self, task: str, function: Callable[..., Any]) -> None:
        self._task = task
        whole = inspect.signature(function)
        hints = hints_of(f"task {task!r}", function)
        self._job = next((name for name in whole.parameters if _is_job(hints.get(name))), None)
        given = [parameter for parameter in whole.parameters.values() if parameter.name != self._job]
        unnamed = next((parameter for parameter in given if parameter.kind in _NO_NAME), None)
        if unnamed is not None:
            raise InvalidArgument(f"task {task!r} takes {unnamed}: name its parameters, since a job holds them by name")
        self._signature = whole.replace(parameters=given)
        self._by_position = [p.name for p in whole.parameters.values() if p.kind is p.POSITIONAL_ONLY]
        # Not by their own names: those of pydantic's methods may be taken.
        self._fields = {parameter.name: f"argument_{at}" for at, parameter in enumerate(given)}
        fields: dict[str, Any] = {self._fields[p.name]: (hints.get(p.name, Any), _field(p)) for p in given}
        try:
            self._arguments = create_model(f"arguments of {task}", __config__=_CONFIG, **fields)
            self._result = ReturnType(f"task {task!r}", hints.get("return", Any))
        except PydanticUserError as error:
            raise InvalidArgument(f"task {task!r} has a type that JSON can't hold: {error.message}") from error
        if hides(self._arguments):
            raise InvalidArgument(
                f"task {task!r} has a secret type, whose JSON is asterisks: give a reference to the secret instead"
            )

    def encode(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
        """The arguments of a call as a JSON object, without those left to their defaults; or `InvalidArgument`."""
        arguments = self.bind(args, kwargs) if args else kwargs
        try:
            model = self._arguments.model_validate(dict(arguments))
            left_out = {field for field in self._fields.values() if field not in model.model_fields_set}
            encoded: str = model.model_dump_json(by_alias=True, round_trip=True, exclude=left_out, warnings="error")
        except ValidationError as error:
            raise InvalidArgument(f"the arguments of task {self._task!r} don't fit: {found_wrong(error)}") from error
        except ValueError as error:
            raise InvalidArgument(f"the arguments of task {self._task!r} are no JSON: {error}") from error
        try:
            self._arguments.model_validate_json(encoded)
        except ValidationError as error:
            raise InvalidArgument(
                f"the arguments of task {self._task!r} can't be read again from their JSON: {found_wrong(error)}"
            ) from error
        return encoded.encode()

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of this name that a job gives."""
        return name in self._fields

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its arguments."""
        return tuple(self._fields)

    def plain(self, payload: bytes) -> dict[str, Any]:
        """The arguments in a payload that this made, those left to their defaults too, with models as mappings."""
        plain: dict[str, Any] = self._arguments.model_validate_json(payload).model_dump(by_alias=True)
        return plain

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, partly: bool = False) -> Mapping[str, Any]:
        """The arguments of a call by their names, `partly` some of them; raises `InvalidArgument`."""
        try:
            bind = self._signature.bind_partial if partly else self._signature.bind
            return bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidArgument(f"task {self._task!r}: {error}") from error

    def decode(self, payload: bytes) -> dict[str, Any]:
        """The arguments in a payload; raises `ArgumentsDontFit`."""
        try:
            model = self._arguments.model_validate_json(payload)
        except ValidationError as error:
            raise ArgumentsDontFit(
                f"the job's arguments are not those of task {self._task!r}: {found_wrong(error)}"
            ) from error
        return {name: getattr(model, field) for name, field in self._fields.items()}

    def call(self, function: Callable[..., Any], payload: bytes, job: JobContext) -> Callable[[], Any]:
        """The call of `function` with the arguments in a payload; raises `ArgumentsDontFit`."""
        arguments = self.decode(payload)
        if self._job is not None:
            arguments[self._job] = job
        by_position = [arguments.pop(name) for name in self._by_position]
        return lambda: function(*by_position, **arguments)

    def encode_result(self, value: Any) -> bytes | None:
        """A result as JSON, None for none; raises `ResultDoesntFit` for one of another type or above the limit."""
        return self._result.encode(value)

    def decode_result(self, result: bytes | None) -> Any:
        """The value of a result; raises `InvalidArgument` when the task names another type by now."""
        return self._result.decode(result)


def _is_job(hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return {*get_args(hint)} == {JobContext, types.NoneType}
    return hint is JobContext


def _field(parameter: inspect.Parameter) -> Any:
    if parameter.default is parameter.empty:
        return Field(alias=parameter.name)
    return Field(default=parameter.default, alias=parameter.name)
