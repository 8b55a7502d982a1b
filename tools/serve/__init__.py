"""The service: a queue over HTTP, for other processes, machines and languages. Start with service_app.py and routes.py."""
