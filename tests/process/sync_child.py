"""A script that enqueues and ends without closing its queue; with `fork`, a forked child of it ends first.

python tests/process/sync_child.py URL [fork]
"""

import os
import sys

from ledgerq.sync import Queue


def main(url: str, *ways: str) -> None:
    """Open, enqueue, perhaps fork, and end."""
    queue = Queue.open(url)
    queue.enqueue("q", b"1")
    if ways:
        child = os.fork()
        if child == 0:
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        queue.enqueue("q", b"2")


if __name__ == "__main__":
    main(*sys.argv[1:])
