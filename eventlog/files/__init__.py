"""A file store's folder: syncs, garbage collection, permissions, and checks of its files.

Start with fsync.py: SlateDB itself never calls fsync.
"""
