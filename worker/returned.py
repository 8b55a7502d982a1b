"""What a function returns, as JSON, checked by pydantic: the result of a task, and the value of a step."""

import json
from collections.abc import Callable
from typing import Any, Final, TypeVar, get_type_hints

from pydantic import ConfigDict, RootModel, ValidationError
from pydantic.errors import PydanticUserError

from ledgerq.eventlog.errors import InvalidArgument, ResultTooLarge
from ledgerq.worker.engine.settlement import check_result
from ledgerq.worker.outcomes import ResultDoesntFit

__all__ = ["JSON_CONFIG", "ReturnType", "found_wrong", "hides", "hints_of"]

# What JSON has no form for is written so that it comes back as it was.
JSON_CONFIG: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

T = TypeVar("T")


class _Returned(RootModel[T]):
    model_config = JSON_CONFIG


class ReturnType:
    """The type of what a function returns; `what` names it in errors, as in "task 'send'"."""

    def __init__(self, what: str, hint: Any) -> None:
        self._what = what
        try:
            self._model = _Returned[hint]
        except PydanticUserError as error:
            raise InvalidArgument(f"{what} has a type that JSON can't hold: {error.message}") from error
        if hides(self._model):
            raise InvalidArgument(
                f"{what} has a secret type, whose JSON is asterisks: give a reference to the secret instead"
            )

    def encode(self, value: Any) -> bytes | None:
        """A value as JSON, None for none; raises `ResultDoesntFit` for one of another type or above the limit."""
        if value is None:
            return None
        try:
            checked = self._model.model_validate(value)
            text: str = checked.model_dump_json(by_alias=True, round_trip=True, warnings="error")
        except ValidationError as error:
            raise ResultDoesntFit(
                f"{self._what} returned a value that is not of its declared type: {found_wrong(error)}"
            ) from error
        except ValueError as error:
            raise ResultDoesntFit(f"the result of {self._what} can't be JSON: {error}") from error
        try:
            check_result(result := text.encode())
        except ResultTooLarge as error:  # the next try would return as much
            raise ResultDoesntFit(f"{self._what}: {error}") from error
        try:
            self._model.model_validate_json(text)
        except ValidationError as error:
            raise ResultDoesntFit(
                f"the result of {self._what} can't be read again from its JSON: {found_wrong(error)}"
            ) from error
        return result

    def decode(self, stored: bytes | None) -> Any:
        """The value that was stored; raises `InvalidArgument` when the function names another type by now."""
        if stored is None:
            return None
        try:
            return self._model.model_validate_json(stored).root
        except ValidationError as error:
            raise InvalidArgument(
                f"the stored result of {self._what} is not of the type that it names now: {found_wrong(error)}"
            ) from error


def hints_of(what: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function; raises `InvalidArgument` for one whose type can't be found."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidArgument(
            f"an annotation of {what} can't be found ({error}): define the type in the module, above the "
            f"{what.partition(' ')[0]}"
        ) from error


def hides(model: Any) -> bool:
    """Whether a part of the model is one of pydantic's secret types."""
    try:
        schema = json.dumps(model.model_json_schema())
    except PydanticUserError:
        return False  # of a type that has no schema
    return '"writeOnly": true' in schema


def found_wrong(error: ValidationError) -> str:
    """What is wrong, without the values, which may be anybody's data."""
    found = [f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors(include_input=False)]
    return "; ".join(found)
