"""A file store's folder: what is synced and when, what is removed, who may enter, and what must not
lie there.

Start with fsync.py: SlateDB itself never calls fsync.
"""
