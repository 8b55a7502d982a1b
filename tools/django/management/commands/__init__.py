"""`manage.py ledgerq_worker`."""
