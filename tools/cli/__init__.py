"""The command line: `ledgerq COMMAND` and `rebuild-projections`. app.py ties the commands together."""
