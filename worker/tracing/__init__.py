"""OpenTelemetry: a span for each enqueue and for each try. Only those pass provider.py who ask for it."""
