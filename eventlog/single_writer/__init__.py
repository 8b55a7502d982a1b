"""One writer at a time: a lock on a file store, a lease on an object store.

Start with hold.py, which has both behind one call.
"""
