"""Tasks: functions with typed arguments and results, enqueued by calls that a type checker knows.

Start with registry.py; task.py has a task, signature.py its arguments as JSON, handle.py the wait for its result,
calling.py the call of a task, task_handlers.py what a worker runs, inline.py and memory_queue.py what tests use.
"""
