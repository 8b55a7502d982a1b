"""`ledgerq doctor`: can a store live here, safely and fast?"""
