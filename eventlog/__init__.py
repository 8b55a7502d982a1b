"""Facts: the events, their bytes, the hash chain, the stores, and the log that holds them. Imports nothing of ours.

Start with events.py (the facts) and keys.py (the layout of the keys); log.py reads, writer.py appends.
`ledgerq.projections` has what follows from facts.
"""
