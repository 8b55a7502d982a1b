"""What follows from facts: jobs, indexes, counters, metrics, replay, audit and rebuild. All of it is a fold of the log.

Start with job.py (the state machine in one table) and indexes.py (where a job in some state is found). What decides new
facts stands in `ledgerq.worker`.
"""
