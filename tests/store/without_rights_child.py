"""Command lines as a user without rights, run from a process of root's, whom no mode keeps out of anything.

    python tests/store/without_rights_child.py SCRATCH COMMAND [--then COMMAND]...

SCRATCH is a folder of root's to warm up in: whoever may not read root's folders must have imported everything before.
Prints for each command its exit code and the last line that it said.
"""

import contextlib
import io
import os
import sys

from ledgerq.tools.cli.app import run

NOBODY = 65534


def said(command: list[str]) -> str:
    """Run it; its exit code and the last line of its output."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = run(command)
    return f"{code} {(output.getvalue().splitlines() or [''])[-1]}"


def main() -> None:
    """Become nobody, and run the commands."""
    store = f"{sys.argv[1]}/store"
    for line in ("enqueue {} q x", "stats {}", "log {}", "audit {}", "stats {}-none", "enqueue {}/a/b q x"):
        said(line.format(store).split())
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    command: list[str] = []
    for word in [*sys.argv[2:], "--then"]:
        if word == "--then":
            print(said(command))
            command = []
        else:
            command.append(word)


if __name__ == "__main__":
    main()
