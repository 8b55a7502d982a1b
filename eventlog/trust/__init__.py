"""The transparency log: the tree over the record batches, its publication, receipts of jobs, and their verifier.

Start with entries.py (what is hashed) and tree.py (how); publisher.py writes the published files, receipts.py reads
them. verifier.py stands alone: auditors get it as one file.
"""
