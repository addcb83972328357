"""The store that is in the server: one SQLite database with full-text search."""

from hyperlog.store.sqlite.store import DATABASE, EmbeddedStore

__all__ = ["DATABASE", "EmbeddedStore"]
