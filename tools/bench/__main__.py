"""`python -m ledgerq.tools.bench`: the same as `ledgerq bench`."""

import sys

from ledgerq.tools.cli.app import run

if __name__ == "__main__":
    sys.exit(run(["bench", *sys.argv[1:]]))
