"""Crash-safe state for dora operators, and one shared store for all nodes of a dataflow."""

from .kvs import kvs_delete, kvs_keys, kvs_read, kvs_write
from .store import Entry, Store

__all__ = ["Entry", "Store", "kvs_delete", "kvs_keys", "kvs_read", "kvs_write"]
