"""The arguments and results of tasks as JSON: what comes back is what was given, and what doesn't fit is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, Json, SecretStr, computed_field

from ledgerq.eventlog.errors import InvalidArgument
from ledgerq.worker.claims import Claim
from ledgerq.worker.execution import JobContext
from ledgerq.worker.outcomes import ArgumentsDontFit, ResultDoesntFit
from ledgerq.worker.tasks.signature import Signature


class Colour(Enum):
    RED = "red"


class Item(BaseModel):
    name: str
    made: datetime = Field(default_factory=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    raw: bytes = b""


@dataclass
class Point:
    x: int
    y: float = 0.5


VALUES: list[tuple[Any, Any]] = [
    (int, 2**80),
    (float, float("inf")),
    (str, "\u20ac\x00"),
    (bytes, b"\xff\x00"),
    (bool, True),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=UTC)),
    (date, date(2026, 2, 28)),
    (timedelta, timedelta(seconds=90.5)),
    (Decimal, Decimal("0.10")),
    (UUID, UUID(int=5)),
    (Colour, Colour.RED),
    (Item, Item(name="n")),
    (list[Item], [Item(name="a"), Item(name="b")]),
    (dict[str, tuple[int, ...]], {"a": (1, 2)}),
    (Point, Point(1)),
    (int | None, None),
    (Any, {"a": [1, None, "x"]}),
    (Annotated[int, Field(ge=1)], 1),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=lambda one: str(one)[:40])
def test_what_is_given_comes_back(kind: Any, value: Any) -> None:
    def task(value):  # type: ignore[no-untyped-def]
        pass

    task.__annotations__ = {"value": kind, "return": kind}
    signature = Signature("task", task)
    assert signature.decode(signature.encode((value,), {})) == {"value": value}
    assert signature.encode((value,), {}) == signature.encode((), {"value": value})
    assert signature.decode_result(signature.encode_result(value)) == value


def test_defaults_are_those_of_the_worker_and_not_stored() -> None:
    def old(a: int, b: int = 2) -> None: ...

    def new(a: int, b: int = 3, c: str = "new") -> None: ...

    payload = Signature("task", old).encode((1,), {})
    assert payload == b'{"a":1}'
    assert Signature("task", new).decode(payload) == {"a": 1, "b": 3, "c": "new"}
    assert Signature("task", new).decode(Signature("task", old).encode((1, 2), {}))["b"] == 2


def test_defaults_within_a_value_are_stored() -> None:
    def task(item: Item) -> None: ...

    assert b"2026-01-01" in Signature("task", task).encode((Item(name="n"),), {})


def test_names_of_pydantics_own_are_no_trouble() -> None:
    def task(json: int, copy: int, _private: int, model_config: int, schema: int = 5) -> None: ...

    signature = Signature("task", task)
    assert signature.decode(signature.encode((1, 2, 3, 4), {})) == {
        "json": 1,
        "copy": 2,
        "_private": 3,
        "model_config": 4,
        "schema": 5,
    }


@pytest.mark.parametrize(
    ("args", "kwargs", "what"),
    [
        (("x",), {}, "user_id: Input should be a valid integer"),
        ((), {}, "user_id: Field required"),
        ((1,), {"more": 2}, "unexpected keyword argument 'more'"),
        ((), {"user_id": 1, "more": 2}, "more: Extra inputs are not permitted"),
        ((1, 2), {}, "too many positional arguments"),
        ((1,), {"user_id": 1}, "multiple values for argument 'user_id'"),
    ],
)
def test_arguments_that_dont_fit_are_refused_without_their_values(args: Any, kwargs: Any, what: str) -> None:
    def task(user_id: int) -> None: ...

    with pytest.raises(InvalidArgument, match=what) as caught:
        Signature("task", task).encode(args, kwargs)
    assert "'x'" not in str(caught.value)


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        (b"no json", "Invalid JSON"),
        (b"[1]", "Input should be an object"),
        (b"{}", "user_id: Field required"),
        (b'{"user_id": 1, "old": 2}', "old: Extra inputs are not permitted"),
        (b"\xff", "Invalid JSON"),
    ],
)
def test_a_payload_that_doesnt_fit_is_named(payload: bytes, what: str) -> None:
    def task(user_id: int) -> None: ...

    with pytest.raises(ArgumentsDontFit, match=what):
        Signature("task", task).decode(payload)


class Odd:
    """A type that pydantic doesn't know."""


def yields_odd() -> Odd:
    return Odd()


def takes_any_number(*numbers: int) -> None: ...


def takes_any_name(**names: int) -> None: ...


def takes_odd(odd: Odd) -> None: ...


def takes_unknown(x: "Unknown") -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (yields_odd, "has a type that JSON can't hold"),
        (takes_odd, "has a type that JSON can't hold"),
        (takes_any_number, r"takes \*numbers: int: name its parameters"),
        (takes_any_name, r"takes \*\*names: int: name its parameters"),
        (takes_unknown, "define the type in the module, above the task"),
    ],
)
def test_what_can_not_be_a_task_is_refused_when_it_is_made(function: Callable[..., Any], what: str) -> None:
    with pytest.raises(InvalidArgument, match=what):
        Signature("task", function)


def test_results_are_those_that_the_signature_names() -> None:
    def task() -> list[int]:
        return []

    signature = Signature("task", task)
    assert signature.encode_result(None) is None
    assert signature.decode_result(None) is None
    with pytest.raises(ResultDoesntFit, match="returned a value that is not of its declared type: 0: Input should be"):
        signature.encode_result(["x"])
    with pytest.raises(InvalidArgument, match="not of the type that it names now"):
        signature.decode_result(b'"text"')
    with pytest.raises(ResultDoesntFit, match="return a reference"):
        signature.encode_result([1] * 600_000)


def test_a_result_without_a_type_must_be_json() -> None:
    def task():  # type: ignore[no-untyped-def]
        pass

    with pytest.raises(ResultDoesntFit, match="the result of task 'task' can't be JSON"):
        Signature("task", task).encode_result(Odd())


def first(job: JobContext, x: int) -> Any:
    return job, x


def by_name(x: int, *, job: JobContext | None = None) -> Any:
    return job, x


def only_by_position(job: JobContext, x: int, /, y: int = 5) -> Any:
    return job, x


@pytest.mark.parametrize("function", [first, by_name, only_by_position])
def test_a_parameter_for_the_job_gets_it_and_is_no_argument(function: Callable[..., Any]) -> None:
    signature, job = Signature("task", function), JobContext(object.__new__(Claim))
    payload = signature.encode((7,), {})
    assert payload == b'{"x":7}'
    assert signature.call(function, payload, job)() == (job, 7)


class Aliased(BaseModel):
    user_id: int = Field(alias="userId")


class Unlike(BaseModel):
    number: int = Field(validation_alias="in", serialization_alias="out")


class Computed(BaseModel, extra="forbid"):
    side: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        """What follows from it, which is not stored."""
        return self.side**2


@pytest.mark.parametrize(
    ("kind", "value"), [(Aliased, Aliased(userId=3)), (Computed, Computed(side=3)), (Json[list[int]], "[1, 2]")]
)
def test_aliases_and_computed_fields_come_back(kind: Any, value: Any) -> None:
    def task(value: kind) -> kind:
        return value

    signature = Signature("task", task)
    (found,) = signature.decode(signature.encode((value,), {})).values()
    assert found == ([1, 2] if kind == Json[list[int]] else value)
    if kind != Json[list[int]]:
        assert signature.decode_result(signature.encode_result(value)) == value


def test_what_its_json_does_not_give_back_is_refused_before_anything_is_written() -> None:
    def task(value: Unlike) -> Unlike:
        return value

    signature, value = Signature("task", task), Unlike.model_validate({"in": 3})
    with pytest.raises(InvalidArgument, match="can't be read again from their JSON"):
        signature.encode((value,), {})
    with pytest.raises(ResultDoesntFit, match="can't be read again from its JSON"):
        signature.encode_result(value)


@pytest.mark.parametrize("kind", [SecretStr, list[SecretStr]])
def test_secrets_are_refused_when_the_task_is_made(kind: Any) -> None:
    def takes(value: kind) -> None:
        """Takes a secret."""

    def gives() -> kind:
        """Gives one."""

    for function in (takes, gives):
        with pytest.raises(InvalidArgument, match="secret type, whose JSON is asterisks"):
            Signature("task", function)
