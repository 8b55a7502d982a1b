"""The parts of audit, rebuild and salvage: rows compared with the fold, and rows written.

Start with comparison.py.
"""
