"""The command line: `ledgerq COMMAND` and `rebuild-projections`. app.py puts the commands together."""
