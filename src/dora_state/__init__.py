"""Crash-safe state for dora operators, and one shared store for all nodes of a dataflow."""

import importlib
from typing import TYPE_CHECKING, Any

from . import started_in as _started_in  # noqa: F401  before the process goes elsewhere

if TYPE_CHECKING:
    from . import errors as errors
    from .async_host import AsyncHost
    from .headers import get_include
    from .host import OperatorHost
    from .kvs import (
        kvs_batch,
        kvs_compare_and_write,
        kvs_delete,
        kvs_entry,
        kvs_keys,
        kvs_open,
        kvs_read,
        kvs_store,
        kvs_update,
        kvs_wait,
        kvs_wait_async,
        kvs_write,
    )
    from .observe import operator_status
    from .operator import RestoreInfo, delete_state, restore_info, save_state
    from .runtime.policy import RestartPolicy
    from .store import Entry, Repaired, Store, repair
    from .traffic import Output
    from .typed_state import state

__all__ = [
    "AsyncHost",
    "Entry",
    "OperatorHost",
    "Output",
    "Repaired",
    "RestartPolicy",
    "RestoreInfo",
    "Store",
    "delete_state",
    "get_include",
    "kvs_batch",
    "kvs_compare_and_write",
    "kvs_delete",
    "kvs_entry",
    "kvs_keys",
    "kvs_open",
    "kvs_read",
    "kvs_store",
    "kvs_update",
    "kvs_wait",
    "kvs_wait_async",
    "kvs_write",
    "operator_status",
    "repair",
    "restore_info",
    "save_state",
    "state",
]

# Imported when they are first asked for: an operator that only saves needs no kvs_*, and a node that only shares no
# runtime.
_HOMES = {
    "AsyncHost": "async_host",
    "OperatorHost": "host",
    "Output": "traffic",
    "RestartPolicy": "runtime.policy",
    "RestoreInfo": "operator",
    "delete_state": "operator",
    "get_include": "headers",
    "operator_status": "observe",
    "restore_info": "operator",
    "save_state": "operator",
    "state": "typed_state",
} | dict.fromkeys(("Entry", "Repaired", "Store", "repair"), "store")


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module(".errors", __name__)
    home = "kvs" if name.startswith("kvs_") else _HOMES.get(name)
    if home is None or name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
