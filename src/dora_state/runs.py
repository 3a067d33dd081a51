"""Which run the hosts of this process are in: those that use one state directory together share its shared store."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

_runs: dict[Path, tuple[str, int]] = {}
_runs_lock = threading.Lock()


@contextlib.contextmanager
def run_in(state_dir: Path) -> Iterator[str]:
    """The id of the run, as location.py wants it, as long as there are hosts in it."""
    with _runs_lock:
        run, hosts = _runs.get(state_dir, (f"host-{uuid.uuid4()}", 0))
        _runs[state_dir] = run, hosts + 1
    try:
        yield run
    finally:
        with _runs_lock:
            run, hosts = _runs.pop(state_dir)
            if hosts > 1:
                _runs[state_dir] = run, hosts - 1
