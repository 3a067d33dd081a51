"""Where state lives: one directory for a dataflow, by default `state` beside it.

    state/
    ├── .dora-state           says that the directory is ours, and its format
    ├── counter/              the private store of the operator of node `counter`
    ├── counter.lock          locked by the node's host while it lives; records its run, and how it ended
    ├── counter.control       a socket: where the command line asks that host for something
    ├── counter.discarded-*/  state that was not adopted, on its way out
    ├── shared/               the shared store of the dataflow
    └── shared.lock, .users   who uses the shared store, and when two dataflows may: membership.py

A run is a dataflow id, which dora makes anew at each start. Within a run state is always carried on, also when dora
restarts our host. Between runs, after a clean stop, a run starts empty; after any other end, and also when we cannot
tell, it adopts the state. `keep` always adopts, `fresh` never. The shared store is adopted if one of the run's
operators is told `keep`, and `fresh` leaves it alone: it belongs to the others, too.

Starting empty first renames the directory aside: what was half deleted is never adopted.

What cannot be used is refused before anything is written, and deleted is only what is ours.

A node id never becomes a path component as it is: see `escape`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from . import membership, run_record
from ._core import Store
from .errors import FormatError, NotAStoreError, OperatorError
from .lockfile import LockFile, peek
from .membership import Membership

log = logging.getLogger(__name__)

FORMAT = 1
_TAG = ".dora-state"
_REPLAY = "replay"  # how a run has ended of which a dead letter is to be handled by the next
_DEFAULT = "state"
_ELSEWHERE = "choose another place with --state-dir or DORA_STATE_DIR"
_NAME_LIMIT = (
    120  # of an escaped node id: leaves room for our suffixes below the 255 bytes of a file name
)
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
# The files of a store, as in docs/format.md.
_STORE_FILE = re.compile(
    r"[0-9a-f]{16}\.(log|blob)|floor|control|index\.[0-9a-f]+|reserve|(segment|control|reserve)\.new"
)
_HEADER_BYTES = 128  # of a segment
# The kernel gives back the lock of a killed owner when its memory is down: 61 ms after the kill at 1 GiB.
_PATIENCE_S = 2.0


@dataclass
class Claim:
    """The right of one host to the state of one node. It lasts until `finish`, or until the process ends."""

    path: Path
    """The private store of the operator."""
    shared: Path
    """The shared store of the dataflow."""
    adopted: bool
    """Whether `path` holds state from before."""
    _name: str = field(repr=False)
    _lock: LockFile = field(repr=False)
    _membership: Membership = field(repr=False)

    def finish(self, clean: bool) -> None:
        """Gives the state back. `clean`: this was an orderly stop, and the next run may start empty.

        Close the stores first: closing syncs them, and what is on disk of a clean end must not precede the
        state that it speaks of.
        """
        try:
            if clean:
                self._membership.leave_cleanly(self._name)
                self._lock.write({**self._lock.read(), "ended": "clean"})
        finally:
            self._membership.close()
            self._lock.close()


def claim(
    dataflow_id: str,
    node_id: str,
    *,
    state_dir: Path | None = None,
    keep: bool = False,
    keep_shared: bool = False,
    fresh: bool = False,
    cwd: Path,
) -> Claim:
    """Claims the state of a node for this process, and decides whether it is adopted.

    Args:
        state_dir: where the state lives; by default `DORA_STATE_DIR`, else `state` in `cwd`.
        keep: adopt the state also after a clean stop, and the shared store.
        keep_shared: another operator of the dataflow is told so.
        fresh: start empty also after a crash. A host that dora restarts within the run carries on all the same.
        cwd: the directory of the dataflow.

    Raises OperatorError if the directory cannot be used, or if another live process owns the state of this node.
    """
    if keep and fresh:
        raise OperatorError("--keep and --fresh exclude each other; use one of them")
    root = resolve(state_dir, cwd)
    name = escape(node_id)
    enter(root, dataflow_id, name)
    with contextlib.ExitStack() as undo, _as_operator_error(root):
        lock = LockFile(root / f"{name}.lock")
        undo.callback(lock.close)
        if not lock.acquire(timeout_s=_PATIENCE_S):
            raise OperatorError(
                f"the state of node {node_id!r} in {root / name} is in use by process"
                f" {lock.read().get('pid', '?')}; stop that one, or {_ELSEWHERE}"
            )
        past = lock.read()
        adopted = _is_adopted(root / name, past, dataflow_id, keep=keep, fresh=fresh)
        if not adopted:
            _check_discardable(root / name)
        member = join_shared(root, dataflow_id, operator=name, keep=keep or keep_shared, cwd=cwd)
        undo.callback(member.close)
        if not adopted:
            _discard(root / name)
        lock.write(
            {"ended": "no", "dataflow_id": dataflow_id, "node_id": node_id, "pid": os.getpid()}
        )
        undo.pop_all()
    if adopted:
        reason = _reason(past, dataflow_id)
        log.info("node %s adopts the state in %s: %s", node_id, root / name, reason)
    return Claim(root / name, root / "shared", adopted, name, lock, member)


def join_shared(
    root: Path, dataflow_id: str, *, operator: str | None = None, keep: bool = False, cwd: Path
) -> Membership:
    """Makes this process a user of the dataflow's shared store, in `root / "shared"`, for as long as it lives.

    `keep`: an operator of the dataflow, whichever, is told to keep state. `cwd` is the directory of the dataflow: the
    one place that nobody has to name.
    """
    named = os.path.realpath(root) != os.path.realpath(cwd / _DEFAULT)
    return membership.join(
        root, dataflow_id, operator=operator, keep=keep, named=named, patience_s=_PATIENCE_S
    )


def enter(root: Path, dataflow_id: str, *stores: str) -> None:
    """Prepares `root`, and notes that this run keeps its state there; refuses a second place for the same run."""
    if noted := run_record.find(escape(dataflow_id)):
        _check_same(dataflow_id, noted, root)
    prepare(root, *stores)
    _check_same(dataflow_id, run_record.publish(escape(dataflow_id), root), root)


def _check_same(dataflow_id: str, noted: Path, root: Path) -> None:
    if not os.path.isdir(noted) or not os.path.isdir(root) or not os.path.samefile(noted, root):
        raise OperatorError(
            f"dataflow {dataflow_id} keeps its state in {noted}, not in {root};"
            " give all its operators the same --state-dir"
        )


def resolve(state_dir: Path | None, cwd: Path) -> Path:
    """The state directory as an absolute path: what was asked for, else DORA_STATE_DIR, else `state` in `cwd`."""
    return cwd / (state_dir or os.environ.get("DORA_STATE_DIR") or _DEFAULT)


def prepare(root: Path, *stores: str) -> None:
    """Makes sure that `root` is a state directory that this process may use; creates it if it is not there.

    Refuses, before anything is written, what cannot be used; that goes for the shared store and the private `stores`
    in it, too.
    """
    with _as_operator_error(root):
        if root.is_dir():
            _check_root(root)
            for name in ("shared", *stores):
                _check_store(root / name)
        else:
            _make_directory(root)
        if not _check_root(root):  # again: somebody may have been faster
            _write_tag(root)


def examine(root: Path) -> None:
    """Refuses what is not a state directory of this version, or cannot be read. Writes nothing."""
    try:
        tag = _read_tag(root)
    except OSError as error:
        raise OperatorError(
            f"cannot read the state in {root}: {_sentence(error)}; give a state directory of your own"
        ) from error
    if tag is None:
        what = "is not a state directory" if root.exists() else "is not there"
        raise OperatorError(f"{root} {what}; give the directory that a dataflow keeps its state in")
    _check_format(root, tag)


def nodes(root: Path) -> list[tuple[str, str]]:
    """Who has a private store in a state directory: (directory, node id), by node id."""
    found = []
    for path in root.iterdir():
        if path.is_dir() and path.name != "shared" and "." not in path.name:
            node = peek(root / f"{path.name}.lock").get("node_id")
            found.append((path.name, str(node) if node is not None else unquote(path.name)))
    return sorted(found, key=lambda pair: pair[1])


def starts_empty(root: Path, name: str) -> bool:
    """Whether the next run starts without what is in this store now, unless it is told to keep it."""
    if name == "shared":
        return membership.starts_empty(root)
    return peek(root / f"{name}.lock").get("ended") == "clean"


def adopt_next(root: Path, name: str) -> None:
    """Has the next run adopt this store though the last ended with a clean stop: it holds what somebody wants
    handled. For who holds the node's lock.
    """
    lock = LockFile(root / f"{name}.lock")
    try:
        record = lock.read()
        if record.get("ended") == "clean":
            lock.write({**record, "ended": _REPLAY})
    finally:
        lock.close()


def _check_root(root: Path) -> bool:
    """Refuses a directory that this process must not or cannot use; returns whether it is known to be ours."""
    tag = _read_tag(root)
    if tag is None:
        foreign = sorted(name for name in os.listdir(root) if not name.startswith(_TAG))
        if foreign:
            # Somebody may just have made it a state directory, and begun to use it.
            tag = _read_tag(root)
        if foreign and tag is None:
            raise OperatorError(
                f"{root} is not a state directory of dora-state: it holds {foreign[0]!r}; {_ELSEWHERE}"
            )
    if tag is not None:
        _check_format(root, tag)
    _check_access(root, "state directory")
    return tag is not None


def _check_format(root: Path, tag: dict[str, Any]) -> None:
    if tag.get("format") != FORMAT:
        raise OperatorError(
            f"the state directory {root} has format {tag.get('format', 'unknown')!r}, this version"
            f" knows {FORMAT}; use the dora-state that wrote it, or {_ELSEWHERE}"
        )


def _check_store(path: Path) -> None:
    """Refuses what is at `path` unless a store can be opened or made there. Reads only."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    foreign = any(map(_is_foreign, names))
    if names and not _is_unborn(path, names):
        try:
            Store(str(path), read_only=True).close()
        except (NotAStoreError, FormatError) as error:
            # Files of ours and yet no store: its maker has died, or is just at it.
            if foreign or isinstance(error, FormatError):
                raise OperatorError(f"{error}; move {path} away, or {_ELSEWHERE}") from error
    _check_access(path, "store")


def _is_unborn(path: Path, names: list[str]) -> bool:
    """Whether the power went before the first header was on disk. Who may write makes a store of that."""
    logs = [name for name in names if name.endswith(".log")]
    if logs != [f"{0:016x}.log"] or "floor" in names or any(map(_is_foreign, names)):
        return False
    with open(path / logs[0], "rb") as file:
        return not any(file.read(_HEADER_BYTES))


def _is_foreign(name: str) -> bool:
    return _STORE_FILE.fullmatch(name) is None


def _check_access(path: Path, what: str) -> None:
    if os.stat(path).st_uid != os.geteuid():
        raise OperatorError(f"the {what} {path} belongs to another user; {_ELSEWHERE}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise OperatorError(f"the {what} {path} is not writable; {_ELSEWHERE}")


def _make_directory(path: Path) -> None:
    """Makes a directory and what is missing above it, or nothing at all."""
    made: list[Path] = []
    try:
        for missing in reversed([path, *path.parents]):
            if missing != path and missing.exists():
                continue
            try:
                missing.mkdir(mode=0o700 if missing == path else 0o777)
                made.append(missing)
            except FileExistsError:
                if not missing.is_dir():  # else somebody was faster
                    raise
    except BaseException:
        for directory in reversed(made):
            with contextlib.suppress(OSError):  # somebody has begun to use it
                directory.rmdir()
        raise


def escape(node_id: str) -> str:
    """The file name of a node id. Different ids have different names; none is `shared`, and none has a dot.

    Everything but ASCII letters, digits, `-` and `_` is percent-encoded byte by byte, so an id in NFC and its twin
    in NFD differ on every file system. What gets too long ends in a hash of the whole.
    """
    raw = node_id.encode("utf-8", "surrogatepass")
    name = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in raw)
    if name == "shared":
        return "%shared"  # nobody else's: behind a percent sign stand two upper-case digits or, below, a dash
    if not name or len(name) > _NAME_LIMIT:
        return f"{name[:40]}%-{hashlib.sha256(raw).hexdigest()}"
    return name


def _is_adopted(
    path: Path, past: dict[str, Any], dataflow_id: str, *, keep: bool, fresh: bool
) -> bool:
    """Whether there is state at `path`, and this run goes on with it."""
    try:
        present = bool(os.listdir(path))
    except FileNotFoundError:
        present = False
    if past.get("dataflow_id") == dataflow_id:
        return present
    return present and (keep or not (fresh or past.get("ended") == "clean"))


def _check_discardable(path: Path) -> None:
    """Refuses to delete what a user has put beside the files of a store."""
    foreign = sorted(filter(_is_foreign, os.listdir(path))) if path.exists() else []
    if foreign:
        raise OperatorError(
            f"{path} is to be emptied and holds {foreign[0]!r}, which is not of a store; move that away"
        )


def _discard(path: Path) -> None:
    """Deletes the state at `path`, so that at every moment it is there whole or not at all."""
    if path.exists():
        path.rename(path.with_name(f"{path.name}.discarded-{secrets.token_hex(8)}"))
        # Durable before the new run is on record: else a power loss could leave the old state together with a record
        # that says to adopt it.
        _sync_directory(path.parent)
    for discarded in path.parent.glob(f"{path.name}.discarded-*"):
        shutil.rmtree(discarded)


def _reason(past: dict[str, Any], dataflow_id: str) -> str:
    if past.get("dataflow_id") == dataflow_id:
        return "its host was restarted"
    if past.get("ended") == "clean":
        return "--keep"
    if past.get("ended") == _REPLAY:
        return "a dead letter waits for its replay"
    return f"run {past.get('dataflow_id', '(unknown)')} did not end with a clean stop"


@contextlib.contextmanager
def _as_operator_error(root: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise OperatorError(
            f"cannot use {root} for state: {_sentence(error)}; {_ELSEWHERE}"
        ) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error)


def _read_tag(root: Path) -> dict[str, Any] | None:
    try:
        tag = json.loads((root / _TAG).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return tag if isinstance(tag, dict) else {}


def _write_tag(root: Path) -> None:
    draft = root / f"{_TAG}.{secrets.token_hex(8)}"
    with open(draft, "x") as file:
        json.dump({"what": "state of dora operators, see dora-state", "format": FORMAT}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(root / _TAG)
    _sync_directory(root)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
