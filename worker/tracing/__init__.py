"""OpenTelemetry: a span for each enqueue and for each try. Imported by provider.py, only when asked for."""
