"""Facts: the events, their bytes, the hash chain, the stores, and the log that holds them. Imports nothing of ours.

Start with events.py (what can happen) and keys.py (where it is kept); log.py reads, writer.py appends. What follows
from facts stands in `ledgerq.projections`.
"""
