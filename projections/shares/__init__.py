"""Large stores looked at by several processes, each of which has a share of the jobs.

share.py is one share's work, processes.py has it done elsewhere (child.py is the program). proof.py puts shares
together for an audit, whole.py for a rebuild.
"""
