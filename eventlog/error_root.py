"""The root of all errors, and that of arguments that can't be."""

from typing import ClassVar

__all__ = ["InvalidArgument", "LedgerError"]


class LedgerError(Exception):
    """The root of the tree: catch this to catch all of them."""

    permanent: ClassVar[bool] = True


class InvalidArgument(LedgerError, ValueError):
    """An argument is out of its range or of the wrong type; nothing was written."""
