"""`ledgerq monitoring`: rules for Prometheus and a dashboard for Grafana; files/ has what is handed out."""
