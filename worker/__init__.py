"""What decides new facts: the queue, its leases, ready windows and maintenance, and the worker that runs handlers.

Start with engine/decisions.py (the only place that refuses) and queue.py (the public face); engine/core.py shows how
the parts hang together.
"""
