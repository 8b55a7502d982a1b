"""SlateDB behind the store's protocol: its binding, options, errors, metrics, and the preflight checks.

Start with opening.py (the way in) and slate_store.py (the store that a writer has).
"""
