"""The parts of a queue: state, decisions, commits staged, jobs handed out, maintenance.

Start with core.py (how they hang together), writer_state.py and decisions.py.
"""
