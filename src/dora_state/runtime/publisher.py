"""Writes the latest status of an operator to the shared store, from a thread of its own: the store's lock may be held
by a process that is stopped, and the supervisor's loop must not wait for that.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

from dora_state._core import Store
from dora_state.errors import StateError
from dora_state.runtime import status as status_record

log = logging.getLogger("dora_state.node")


class Publisher:
    """Statuses that come faster than they can be written are skipped; the last one never is."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._lock = threading.Condition()
        self._latest: dict[str, Any] | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    def open(self, shared: Path) -> None:
        self._thread = threading.Thread(
            target=self._run, args=(shared,), name="status", daemon=True
        )
        self._thread.start()

    def put(self, status: dict[str, Any]) -> None:
        with self._lock:
            self._latest = status
            self._lock.notify()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._lock.notify()
        if self._thread is not None:
            self._thread.join(1.0)  # the shared store may be locked by a process that is stopped

    def _run(self, shared: Path) -> None:
        store: Store | None = None
        try:
            while True:
                with self._lock:
                    self._lock.wait_for(lambda: self._latest is not None or self._closing)
                    status, self._latest = self._latest, None
                if status is None:
                    return
                if store is None:
                    store = Store(str(shared))
                status_record.write(store, self._node_id, status)
        except (StateError, OSError) as error:
            log.warning("the status is not published any more: %s", error)
        finally:
            if store is not None:
                store.close()
