"""One store for several processes of a machine: one of them writes it, and the others are its clients.

Start with shared_queue.py; socket_file.py has the Unix socket in the store's folder, which `ledgerq serve` has, too.
"""
