"""`ledgerq exporter`: the metrics of a store that another process writes."""
