"""Recovery of a store after a power cut or damage: read without SlateDB, healed at open, or salvaged.

Start with healing.py (a store that opens again) and damaged_store.py (one that doesn't).
"""
