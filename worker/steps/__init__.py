"""Steps: the parts of a try that are done once, and their values; progress: how far a try has come.

steps.py has the steps of one try, engine/step_staging.py stages their events, progress.py keeps what tries report.
"""
