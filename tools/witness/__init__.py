"""`ledgerq witness`: a small witness of published logs, over HTTP."""
