"""`ledgerq demo`: a queue, a killed worker, a falsified index, and how all of it is repaired.

Start with demo.py and story.py.
"""
