"""The synchronous face: the methods of a queue for threads without an event loop.

blocking.py makes a call on the loop that owns a queue, and waits for it; sync_queue.py has the queue.
"""
