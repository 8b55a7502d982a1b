"""`python -m ledgerq.tools.cli`."""

from ledgerq.tools.cli.app import main

if __name__ == "__main__":
    main()
