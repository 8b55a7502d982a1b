"""`ledgerq monitoring`: rules for Prometheus and a dashboard for Grafana; files/ has the files to export."""
