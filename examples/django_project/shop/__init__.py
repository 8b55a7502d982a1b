"""A shop whose orders are confirmed by tasks."""
