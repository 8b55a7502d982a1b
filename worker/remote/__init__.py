"""The queue on another machine: its messages, and the client that has the methods of `Queue`.

Start with remote_queue.py; wire.py has the messages, which the service (worker/service) uses, too.
"""
