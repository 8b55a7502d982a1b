"""`ledgerq doctor`: checks whether a location can hold a store, safely and fast."""
