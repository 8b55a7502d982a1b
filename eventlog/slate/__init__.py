"""SlateDB behind the store's protocol: its binding, options, errors and metrics, and what is asked of
a bucket or a disk before it opens.

Start with opening.py (the way in) and slate_store.py (the store that a writer has).
"""
