"""The layer of what follows from facts: jobs, indexes, counters, metrics, replay, audit and rebuild.

All of it is a fold of the log. Start with job.py (the state machine in one table) and indexes.py (the index rows of a
job in each state). `ledgerq.worker` decides new facts.
"""
