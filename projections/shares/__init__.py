"""The fold and the comparison of a large store in several processes, each of which has a share of the jobs.

share.py is one share's work, processes.py runs it elsewhere (child.py is the program), proof.py puts it together.
"""
