"""Metrics for Prometheus, as far as they follow from the log and the store.

Start with catalogue.py (every metric) and collector.py (what a scrape calls).
"""
