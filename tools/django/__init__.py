"""The Django app `ledgerq.tools.django`: tasks of `django.tasks` as jobs, and the command `manage.py ledgerq_worker`.

backend.py is what TASKS in the settings names, connections.py has the one open queue of a process, task_results.py what
a job is to Django, task_worker.py what the worker runs.
"""
