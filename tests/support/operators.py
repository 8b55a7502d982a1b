"""Who cancels, requeues, pauses and rebuilds in the tests: the arguments that each such call takes."""

from typing import TypedDict

__all__ = ["WHO", "Who"]


class Who(TypedDict):
    """The name and the reason of an operator, to be given as keywords."""

    actor: str
    reason: str


WHO: Who = {"actor": "ann", "reason": "because"}
