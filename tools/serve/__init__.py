"""The service: a queue over HTTP, for other processes, machines and languages. Start with app.py and routes.py."""
