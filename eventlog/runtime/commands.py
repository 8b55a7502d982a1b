"""Commands that messages advise, to be pasted into a shell as they stand."""

import shlex

__all__ = ["rebuild_command", "salvage_command"]


def rebuild_command(location: str, options: str = "") -> str:
    """The command `rebuild-projections` for the store at `location`, quoted for a shell, with these options."""
    return f"rebuild-projections {shlex.quote(location)} {options}".rstrip()


def salvage_command(location: str) -> str:
    """The command that saves what can still be read of the store at `location`."""
    return rebuild_command(location, "--into NEW --salvage")
