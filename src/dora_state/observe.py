"""How a node of a dataflow looks at the operators beside it."""

from __future__ import annotations

from typing import Any

from . import kvs
from .runtime import status


def operator_status(node_id: str) -> dict[str, Any] | None:
    """What the runtime says about the operator of a node of this dataflow; None before it was started.

    The shared store is found as in `kvs_read`. docs/runtime.md has the fields. What a host that was killed has
    said last stays there.
    """
    return status.read(kvs._shared(), node_id)
