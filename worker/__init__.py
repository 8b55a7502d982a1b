"""The layer that decides new facts: the queue with its leases, ready windows and maintenance, and the worker.

Start with engine/decisions.py (the only place that refuses) and queue.py (the public face); engine/core.py puts the
parts together.
"""
