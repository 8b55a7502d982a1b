"""For tests of programs with tasks: `from ledgerq.testing import memory_queue`."""

from ledgerq.worker.tasks.memory_queue import MemoryQueue as MemoryQueue
from ledgerq.worker.tasks.memory_queue import memory_queue as memory_queue

__all__ = ["MemoryQueue", "memory_queue"]
