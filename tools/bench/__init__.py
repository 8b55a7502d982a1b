"""`ledgerq bench`: throughput, latency, audits and requests, beside a job queue without a log.

Start with bench.py and measurement.py.
"""
