"""The Python face of ``native/``: the ledger of a slice, and what puts a program under the guard."""
