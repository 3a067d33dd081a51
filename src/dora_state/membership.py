"""The life of the shared store: which run it belongs to, who uses it, and when it is emptied.

    shared.lock     locked for an instant, while somebody joins or leaves. Its record: the run (a dataflow id), the
                    operators that have not ended cleanly, whether there were any, whether that is unknown, so that the
                    store is kept, whether the run has named this place, and which other runs have joined it.
    shared.users    locked, together, by every process of the run for as long as it lives.

The first process of a run gets shared.users for itself, which proves that nobody of another run is left, and then
empties the store if the run before ended cleanly, unless its own run is told to keep state: so it must know that of all
the operators of its run, which may start later. Two dataflows in one folder therefore never see each other's
keys: the second is refused while the first lives. Only where both name the same directory, one that is not their
default, they mean to share it: then the second joins, unless the first ends within the time that an ending takes.

The store is emptied by deleting its keys in one commit, not by removing its files: who has it open from outside,
say to watch a robot over many runs, must not be left behind with a store that nobody else sees any more.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._core import RUNTIME, USER, Store
from .errors import OperatorError
from .lockfile import LockFile, peek

log = logging.getLogger(__name__)

# Emptying a large store happens under the lock.
_LOCK_PATIENCE_S = 10.0
_POLL_S = 0.01


class Membership:
    """One process's use of the shared store of a run. It lasts until `close`, or until the process ends."""

    def __init__(self, root: Path, users: LockFile) -> None:
        self._root = root
        self._users = users

    def leave_cleanly(self, operator: str) -> None:
        """Notes that this operator had a clean stop."""
        lock = _lock(self._root)
        try:
            record = lock.read()
            record["open"] = [name for name in record.get("open", []) if name != operator]
            lock.write(record)
        finally:
            lock.close()

    def close(self) -> None:
        self._users.close()


def join(
    root: Path,
    dataflow_id: str,
    *,
    operator: str | None,
    keep: bool,
    named: bool,
    patience_s: float,
) -> Membership:
    """Makes this process a user of the shared store under `root`, and empties the store if that is due.

    `operator` is the name of the operator that this process hosts; None in a custom node. `keep`: one of the run's
    operators adopts its state also after a clean stop. `named`: `root` is not just the default place of this dataflow.
    """
    run = _Run(dataflow_id, operator, keep, named)
    users = LockFile(root / "shared.users")
    try:
        deadline = time.monotonic() + patience_s
        # The lock is given back between two looks: a run that is just ending needs it for that.
        late = False
        while (other := _enter(root, users, run, late)) is not None:
            if late:
                raise OperatorError(
                    f"the shared store {root / 'shared'} is in use by dataflow {other}; stop that one, or"
                    " give this one a state directory of its own with --state-dir or DORA_STATE_DIR"
                )
            late = time.monotonic() > deadline
            time.sleep(_POLL_S)
    except BaseException:
        users.close()
        raise
    return Membership(root, users)


@dataclass(frozen=True)
class _Run:
    """What a process says when it joins."""

    dataflow_id: str
    operator: str | None
    keep: bool
    named: bool

    def record(self, *, keep: bool) -> dict[str, Any]:
        return {
            "dataflow_id": self.dataflow_id,
            "open": [],
            "operators": False,
            "keep": keep,
            "named": self.named,
            "joined": [],
        }

    def may_join(self, record: dict[str, Any], late: bool) -> bool:
        """Whether the run on record, which lives, and this one share the store."""
        if self.dataflow_id in record.get("joined", ()):
            return True
        return late and self.named and bool(record.get("named"))


def _enter(root: Path, users: LockFile, run: _Run, late: bool) -> str | None:
    """Enters this process into the record; returns the other run that still lives, if that is in the way."""
    lock = _lock(root)
    try:
        record = lock.read()
        if record.get("dataflow_id") != run.dataflow_id:
            if users.acquire():
                if _ended_cleanly(record):
                    if run.keep:
                        log.info("keeping the shared store %s: --keep", root / "shared")
                    else:
                        _empty(root / "shared")
                record = run.record(keep=False)
            elif "dataflow_id" in record:
                if not run.may_join(record, late):
                    return str(record["dataflow_id"])
                record["joined"] = sorted({*record.get("joined", ()), run.dataflow_id})
            elif _living_runs(root, run.operator, run.dataflow_id) == {run.dataflow_id}:
                record = run.record(keep=True)  # whether somebody crashed is lost
            else:
                return "(unknown)"
        if run.operator is not None:
            record["open"] = sorted({*record["open"], run.operator})
            record["operators"] = True
        lock.write(record)
        # Nobody holds it exclusively: that happens only under the lock that we have.
        users.acquire(shared=True)
        return None
    finally:
        lock.close()


def _living_runs(root: Path, operator: str | None, dataflow_id: str) -> set[str]:
    """The runs of the operators' hosts that live: who the users are when their record cannot be read.

    `operator` is hosted by this process, which is in no other run: its record may be that of its last one.
    """
    runs = set()
    for path in root.glob("*.lock"):
        if path.name == "shared.lock":
            continue
        lock = LockFile(path)
        try:
            run = lock.read().get("dataflow_id")
            if (path.stem != operator or run == dataflow_id) and lock.is_held():
                runs.add(str(run))
        finally:
            lock.close()
    return runs


def _lock(root: Path) -> LockFile:
    lock = LockFile(root / "shared.lock")
    if not lock.acquire(timeout_s=_LOCK_PATIENCE_S):
        lock.close()
        raise OperatorError(
            f"{lock.path} has been locked by another process for {_LOCK_PATIENCE_S:.0f} s;"
            " see who holds it with `fuser`"
        )
    return lock


def starts_empty(root: Path) -> bool:
    """Whether the next run will empty the shared store under `root`, as it stands."""
    return _ended_cleanly(peek(root / "shared.lock"))


def _ended_cleanly(record: dict[str, object]) -> bool:
    """Whether the store may be emptied. When we cannot tell, it may not."""
    return bool(record.get("operators")) and not record.get("open", True) and not record.get("keep")


def _empty(path: Path) -> None:
    if not path.exists():
        return
    store = Store(str(path))
    try:
        batch = store._batch()
        for keyspace in (USER, RUNTIME):
            for key, _, _ in store._scan(keyspace):
                batch.delete(key, keyspace)
        if len(batch):
            log.info("emptying the shared store %s: the last run ended with a clean stop", path)
            batch.commit()
    finally:
        store.close()
