"""Where a running dataflow keeps its state, noted for people and for processes that cannot work it out.

One file for a run, named by its dataflow id, in $XDG_RUNTIME_DIR/dora-state, or in a directory of this user in the
system's temporary directory. That one could be prepared by somebody else, so a directory that is not a real
directory, ours, and closed to others is not used. Records are a convenience: when they cannot be kept,
that is logged and all goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

log = logging.getLogger(__name__)

_KEPT = 1000  # XDG_RUNTIME_DIR goes with the login, the temporary directory at best with the boot


def directory() -> Path:
    """Where the records are."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return Path(runtime, "dora-state")
    return Path(tempfile.gettempdir(), f"dora-state-{os.geteuid()}")


def find(name: str) -> Path | None:
    """The state directory that is noted for this run; None if there is none."""
    try:
        with _opened(create=False) as parent:
            return _read(parent, name)
    except OSError:
        return None


class Run(NamedTuple):
    """A run that is on record."""

    name: str
    state_dir: Path
    since: float
    """when it was noted: seconds since 1970"""


def runs() -> list[Run]:
    """All runs on record, the latest first. A run may be long over, and its state gone."""
    found = []
    try:
        with _opened(create=False) as parent:
            for name in os.listdir(parent):
                record = _record(parent, name) if not name.startswith(".") else {}
                with contextlib.suppress(KeyError, TypeError, ValueError):
                    found.append(Run(name, Path(record["state_dir"]), float(record["since"])))
    except OSError:
        return []
    return sorted(found, key=lambda run: run.since, reverse=True)


def publish(name: str, state_dir: Path) -> Path:
    """Notes the state directory of a run; returns what is noted, which is another one if somebody was faster."""
    try:
        with _opened(create=True) as parent:
            if known := _read(parent, name):
                return known
            _write(parent, name, {"state_dir": str(state_dir), "since": time.time()})
            _prune(parent)
            return _read(parent, name) or state_dir
    except OSError as error:
        log.warning("cannot note where this run keeps its state: %s", error)
        return state_dir


@contextlib.contextmanager
def _opened(create: bool) -> Iterator[int]:
    """The records' directory as a descriptor: what is checked is then what is used."""
    path = directory()
    if create:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
    parent = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(parent)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise PermissionError(f"{path} belongs to somebody else or is open to others")
        yield parent
    finally:
        os.close(parent)


def _read(parent: int, name: str) -> Path | None:
    try:
        return Path(_record(parent, name)["state_dir"])
    except (KeyError, TypeError):
        return None


def _record(parent: int, name: str) -> dict[str, Any]:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except FileNotFoundError:
        return {}
    with open(descriptor, "rb") as file:
        try:
            record = json.load(file)
        except ValueError:
            return {}
    return record if isinstance(record, dict) else {}


def _write(parent: int, name: str, record: dict[str, Any]) -> None:
    """Creates the record whole or not at all, and never over another one: a link fails if the name is taken."""
    draft = f".{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(draft, flags, 0o600, dir_fd=parent), "w") as file:
        json.dump(record, file)
    try:
        with contextlib.suppress(FileExistsError):
            os.link(draft, name, src_dir_fd=parent, dst_dir_fd=parent)
    finally:
        os.unlink(draft, dir_fd=parent)


def _prune(parent: int) -> None:
    names = os.listdir(parent)
    if len(names) <= _KEPT:
        return
    ages = {}
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            ages[name] = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mtime
    for name in sorted(ages, key=ages.__getitem__)[:-_KEPT]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)
