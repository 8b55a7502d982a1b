"""Metrics of the process that has a queue or a worker, and the HTTP pages that show them.

Start with endpoint.py.
"""
