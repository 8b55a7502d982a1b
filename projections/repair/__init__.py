"""What audit, rebuild and salvage are made of: rows compared with the fold, and rows written.

Start with comparison.py.
"""
