"""`python -m ledgerq.tools.bench`."""

from ledgerq.tools.bench.bench import main

if __name__ == "__main__":
    main()
