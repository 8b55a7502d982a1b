"""The parts of a queue: its state, decisions, admission of jobs, dispatch of claims, and maintenance.

Start with core.py (which puts them together), writer_state.py and decisions.py.
"""
