"""For programs without an event loop: `from ledgerq.sync import Queue`."""

from ledgerq.worker.sync.sync_queue import Queue as Queue

__all__ = ["Queue"]
