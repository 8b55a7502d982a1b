"""The exclusion of a second writer: a lock on a file store, a lease on an object store.

Start with hold.py, which puts both behind one call.
"""
