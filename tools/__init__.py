"""What people run: the command line (cli.py), the demo, the benchmark (`python -m ledgerq.tools.bench`)."""
