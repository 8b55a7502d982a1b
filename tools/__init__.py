"""The programs: the command line (cli/app.py), the demo, the benchmark (`python -m ledgerq.tools.bench`)."""
