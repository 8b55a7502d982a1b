"""The layer of facts: the events, their bytes, the hash chain, the stores, and the log that holds them.

It imports nothing of ours. Start with events.py (the facts) and keys.py (the layout of the keys); log.py reads,
writer.py appends. `ledgerq.projections` has what follows from facts.
"""
