"""The service: a queue over HTTP, for other processes and machines. Start with service_app.py and routes.py."""
