"""The shared store of a dataflow, for its operators and its custom nodes, from any process on this machine.

Nothing has to be configured. Which store it is, is decided at the first call in a process:

    in an operator        what its host says, in DORA_STATE_SHARED
    in a custom node      in the state directory of its dataflow: DORA_STATE_DIR, else what the run has noted
                          (run_record.py), else what the dataflow file says for its operators (node_config.py), else
                          `state` beside the dataflow
    in any other process  in the state directory that kvs_open was told, else DORA_STATE_DIR

A write is visible to every process when the call returns, and survives the death of any of them. It is not part of the
commit of a handler: after a crash the event is handled again, and so is the write.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from . import location, node_config, run_record
from .errors import OperatorError
from .membership import Membership
from .shared_writes import seen_by_handler
from .started_in import STARTED_IN
from .store import Store

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from .store import Batch, Entry

_T = TypeVar("_T")
_RAISE: Any = object()


def kvs_write(key: str, value: Buffer, *, ttl: float | None = None) -> int:
    """Puts a value into the shared store; returns the sequence of its commit.

    ttl: after so many seconds the key is missing again, for everybody; None: never.
    """
    if ttl is None:
        return _shared().put(key, value)
    return _shared().put(key, value, ttl=ttl)


@overload
def kvs_read(key: str) -> bytes: ...
@overload
def kvs_read(key: str, default: _T) -> bytes | _T: ...
def kvs_read(key: str, default: Any = _RAISE) -> Any:
    """The last value of a key in the shared store; if there is none, `default`, or KeyError without one."""
    if default is _RAISE:
        return _shared()[key]
    return _shared().get(key, default)


def kvs_delete(key: str) -> bool:
    """Removes a key from the shared store; returns whether it was there.

    A missing key is no error, so that a handler can be repeated after a crash.
    """
    return _shared().pop(key, None) is not None


def kvs_keys(prefix: str = "") -> list[str]:
    """The keys of the shared store that begin with `prefix`, sorted, as of one point."""
    return sorted(key for key in _shared() if key.startswith(prefix))


def kvs_entry(key: str) -> Entry:
    """The last value of a key with the sequence of its commit; KeyError if there is none."""
    return _shared().entry(key)


def kvs_compare_and_write(
    key: str, value: Buffer, expected: int, *, ttl: float | None = None
) -> int:
    """Writes only if the key is still at the sequence `expected` (0: is missing); else Conflict, with the real one."""
    return _shared().compare_and_put(key, value, expected=expected, ttl=ttl)


def kvs_batch() -> Batch:
    """Collects changes, `put` and `delete`, and makes them one commit at the end of a `with` block.

    Readers see all of it or nothing, also after a crash; an exception in the block discards the changes.
    """
    return _shared().batch()


def kvs_update(
    key: str,
    function: Callable[[Any], Buffer],
    *,
    default: bytes | None = None,
    ttl: float | None = None,
) -> bytes:
    """Writes what `function` makes of the present value, or of `default` if there is none; returns the new value.

    Nothing can come between the reading and the writing: where another process was faster, `function` is called again
    with what that one has written. So it should be quick, and do nothing but compute.

        kvs_update("pieces", lambda n: str(int(n) + 1).encode(), default=b"0")
    """
    return _shared()._modify(key, function, default, ttl=ttl).value


def kvs_wait(
    key: str, after: int = 0, timeout: float | None = None, *, prefix: bool = False
) -> int | None:
    """Sleeps until `key` has a commit after the sequence `after`, and returns that one's sequence.

    A delete counts, and so does a put whose time to live is up by then: where keys go, reading may find none.

    Args:
        after: a sequence, of kvs_write, kvs_entry or an earlier wait. 0: return at once if the key is there. It may
            also if it was there once, until compaction takes the rest; go on with the sequence that came back.
        timeout: in seconds; after it, the result is None. Without one, for ever.
        prefix: any key that begins with `key` will do. Returns also when compaction has taken commits after `after`
            before it could look at them, for they may have been of such a key.
    """
    return _shared().wait(key, after=after, timeout=timeout, prefix=prefix)


async def kvs_wait_async(
    key: str, after: int = 0, timeout: float | None = None, *, prefix: bool = False
) -> int | None:
    """kvs_wait for asyncio: the event loop runs on meanwhile, and the wait can be cancelled."""
    return await _shared().wait_async(key, after=after, timeout=timeout, prefix=prefix)


def kvs_store() -> Store:
    """The shared store itself, for what kvs_* has no function for: `view`, `changes`, Cython. Do not close it.

    What is written through it is visible at once, also in a handler with `shared_writes = "commit"`.
    """
    return _open() if _store is None else _store  # bool() of a store counts its keys


def kvs_open(state_dir: str | os.PathLike[str]) -> None:
    """Says which state directory kvs_* mean in a process that is in no dataflow; without it, DORA_STATE_DIR says so.

    The shared store in it is opened, or made. OperatorError if a second call names another directory, and in a node or
    an operator, for which its dataflow decides.
    """
    global _store, _told
    if os.environ.get("DORA_STATE_SHARED") or node_config.read() is not None:
        raise OperatorError(
            "kvs_open is for processes outside of a dataflow; in it kvs_* find the shared store by themselves"
        )
    root = Path.cwd() / state_dir
    with _opening:
        if _store is None:
            location.prepare(root)
            _store = Store(root / "shared")
            _told = root
        elif os.path.realpath(_store.path) != os.path.realpath(root / "shared"):
            raise OperatorError(
                f"kvs_* use {_store.path} already, not {root / 'shared'}; open a second one as a Store"
            )


# One handle for each process.

_opening = threading.Lock()
_store: Store | None = None
_membership: Membership | None = None
_told: Path | None = None  # by kvs_open; a forked child opens it again


def _shared() -> Store:
    return seen_by_handler(_open() if _store is None else _store)  # an empty one is false


def _open() -> Store:
    global _membership, _store
    with _opening:
        if _store is None:
            path, _membership = _find()
            _store = Store(path)
        return _store


def _find() -> tuple[Path, Membership | None]:
    if told := os.environ.get("DORA_STATE_SHARED"):
        return Path(told), None  # the host of this operator is the member
    config = node_config.read()
    if config is None:
        if _told is not None:
            return _told / "shared", None
        if not os.environ.get("DORA_STATE_DIR"):
            raise OperatorError(
                "kvs_* needs to know where the shared store is, and this process was not started by dora;"
                " set DORA_STATE_DIR to a state directory, or name one to kvs_open"
            )
        root = location.resolve(None, STARTED_IN)
        location.prepare(root)
        return root / "shared", None
    root = _state_dir(config)
    location.enter(root, config.dataflow_id)
    member = location.join_shared(root, config.dataflow_id, keep=config.keeps, cwd=STARTED_IN)
    return root / "shared", member


def _state_dir(config: node_config.NodeConfig) -> Path:
    if not os.environ.get("DORA_STATE_DIR"):
        if noted := run_record.find(location.escape(config.dataflow_id)):
            return noted
        if len(config.state_dirs) > 1:
            raise OperatorError(
                f"the dataflow file names more than one state directory: {', '.join(config.state_dirs)};"
                " give all its operators the same --state-dir"
            )
        if config.state_dirs:
            return location.resolve(Path(config.state_dirs[0]), STARTED_IN)
    return location.resolve(None, STARTED_IN)


def _forget_after_fork() -> None:
    """In a forked child: the handle is the parent's. The membership is shared, and stays."""
    global _opening, _store
    _opening = threading.Lock()
    _store = None


os.register_at_fork(after_in_child=_forget_after_fork)
