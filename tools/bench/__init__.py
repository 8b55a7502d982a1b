"""`ledgerq bench`: throughput, latency and opening, beside a job queue without a log.

Start with bench.py and measurement.py.
"""
