"""What decides new facts: the queue, its leases, ready windows and maintenance, and the worker that runs handlers.

Start with decisions.py (the only place that refuses) and queue.py (the public face); core.py shows how the parts hang
together.
"""
