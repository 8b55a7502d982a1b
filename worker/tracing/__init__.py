"""OpenTelemetry: a span for each enqueue and for each try. It is imported by provider.py, and only when asked for."""
