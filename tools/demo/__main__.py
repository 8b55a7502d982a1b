"""`python -m ledgerq.tools.demo`."""

from ledgerq.tools.demo.demo import main

if __name__ == "__main__":
    main()
