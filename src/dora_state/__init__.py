"""Crash-safe state for dora operators, and one shared store for all nodes of a dataflow."""

from .kvs import kvs_delete, kvs_keys, kvs_read, kvs_write
from .operator import delete_state, save_state
from .runtime.policy import RestartPolicy
from .store import Entry, Repaired, Store, repair

__all__ = [
    "Entry",
    "Repaired",
    "RestartPolicy",
    "Store",
    "delete_state",
    "kvs_delete",
    "kvs_keys",
    "kvs_read",
    "kvs_write",
    "repair",
    "save_state",
]
