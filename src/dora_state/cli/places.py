"""Which store a command means, and who may change it.

    --store DIR         this very store
    --state-dir DIR     the stores of a dataflow: its shared one or, with --node, the private one of an operator
    --dataflow ID       the same, by the dataflow's id or its beginning, from what the run has noted (run_record.py)
    DORA_STATE_DIR      as --state-dir
    otherwise           `state` in the current directory, else where the latest run keeps its state

Looking never writes, and never creates: stores are opened read-only. A change to a private store takes the lock
that the operator's host holds while it lives (location.py), so it is refused beside a running operator, and no host
starts meanwhile: what an operator has in memory must not part from what it would be restored from. The shared store
is everybody's, and may be changed at any time.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import location, run_record
from .._core import USER, RawKey
from ..errors import OperatorError, StateError
from ..lockfile import LockFile
from ..store import Store
from . import text
from .failure import InUse, MissingKey

_Function = TypeVar("_Function", bound=Callable[..., Any])
Key = Any  # str, or RawKey, which the calls of a store take as well


@dataclass(frozen=True)
class Place:
    """One store, and what it is to its dataflow."""

    path: Path
    root: Path | None = None
    """The state directory; None for a store of its own."""
    node: str | None = None
    """Whose private store it is; None for the shared one."""

    @property
    def name(self) -> str:
        """As tables show it."""
        if self.node is not None:
            return text.visible(self.node)
        return "(shared)" if self.root else text.visible(str(self.path))

    def read(self) -> Store:
        """Opened to be looked at: not a byte changes."""
        return Store(self.path, read_only=True, create=False)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """For the time of a change: nobody's operator runs on this store."""
        _check_owner(self.path if self.path.exists() else self.path.parent)
        if self.root is None or self.node is None:
            yield
            return
        lock = LockFile(self.root / f"{self.path.name}.lock")
        try:
            if not lock.acquire(timeout_s=0.5):  # a process that is looking has it for an instant
                raise InUse(
                    f"the operator of node {self.node!r} is running (host {lock.read().get('pid', '?')}) and would not"
                    " see the change; stop the dataflow first, or use the shared store"
                )
            yield
        finally:
            lock.close()

    @contextlib.contextmanager
    def changed(self, **options: Any) -> Iterator[Store]:
        """Held, and opened to be changed."""
        with self.held(), Store(self.path, create=False, **options) as store:
            yield store

    def warn_of_clean_end(self) -> None:
        """A change to what the next run will not adopt is most likely not what was meant."""
        if self.root is None:
            return
        if location.starts_empty(self.root, self.path.name):
            click.echo(
                "note: the last run ended with a clean stop, so the next one starts empty unless it is told --keep",
                err=True,
            )


def dataflow_option(command: _Function) -> _Function:
    return click.option(
        "--dataflow",
        metavar="ID",
        help="The run with this dataflow id, or its beginning.",
        shell_complete=complete_dataflow,
    )(command)


def state_dir_option(command: _Function) -> _Function:
    return click.option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Where the dataflow's state lives.  [default: $DORA_STATE_DIR, ./state, the latest run's]",
    )(command)


def store_options(command: _Function) -> _Function:
    """Adds the options that choose a store; the command gets it as `place`."""

    @click.option(
        "--node",
        metavar="NODE",
        help="The private store of this node's operator.",
        shell_complete=complete_node,
    )
    @dataflow_option
    @state_dir_option
    @click.option(
        "--store",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="A store by its own directory.",
    )
    @functools.wraps(command)
    def with_place(
        *arguments: Any,
        node: str | None,
        dataflow: str | None,
        state_dir: Path | None,
        store: Path | None,
        **options: Any,
    ) -> Any:
        return command(*arguments, place=find(node, dataflow, state_dir, store), **options)

    return with_place  # type: ignore[return-value]


def find(
    node: str | None, dataflow: str | None, state_dir: Path | None, store: Path | None
) -> Place:
    """The store that the options mean, whether it is there or not."""
    given = [
        option
        for option, value in (
            ("--store", store),
            ("--state-dir", state_dir),
            ("--dataflow", dataflow),
        )
        if value is not None
    ]
    if len(given) > 1 or (store is not None and node is not None):
        raise OperatorError(
            f"{given[0]} and {given[1] if len(given) > 1 else '--node'} exclude each other; use one of them"
        )
    if store is not None:
        return _by_path(Path(os.path.abspath(store)))
    root = state_directory(dataflow, state_dir)
    if node is None:
        return Place(root / "shared", root)
    return Place(root / location.escape(node), root, node)


def existing(place: Place) -> Place:
    """Refuses a store that is not there, with what is there instead."""
    if place.root is not None:
        location.examine(place.root)
    if place.path.is_dir():
        return place
    if place.root is None:
        raise OperatorError(f"{place.path} is not there; give the directory of a store")
    nodes = [text.visible(each.node) for each in stores(place.root) if each.node is not None]
    known = f"there is state of {', '.join(nodes)}: use --node" if nodes else "start the dataflow"
    if place.node is None:
        raise OperatorError(f"{place.root} has no shared store yet; {known}")
    raise OperatorError(f"node {place.node!r} has no state in {place.root}; {known}")


def _by_path(path: Path) -> Place:
    """A store inside of a state directory is what it is there, whichever way it was named."""
    with contextlib.suppress(OperatorError):
        location.examine(path.parent)
        for place in stores(path.parent):
            if place.path == path:
                return place
    return Place(path)


def state_directory(dataflow: str | None = None, state_dir: Path | None = None) -> Path:
    """The state directory that is meant. Only if it was named, it need not be there."""
    if dataflow is not None:
        return _of_run(dataflow)
    if told := state_dir or os.environ.get("DORA_STATE_DIR"):
        return Path(os.path.abspath(told))
    for root in (Path.cwd() / "state", *(run.state_dir for run in run_record.runs())):
        with contextlib.suppress(OperatorError):
            location.examine(root)
            return root
    raise OperatorError(
        f"no state found: {Path.cwd() / 'state'} is none and no run is on record; give --state-dir or --store"
    )


def _of_run(dataflow: str) -> Path:
    found = [run for run in run_record.runs() if run.name.startswith(location.escape(dataflow))]
    if not dataflow or not found:
        raise OperatorError(
            f"no run {dataflow!r} is on record; see `dora list`, or give --state-dir"
        )
    if len({run.state_dir for run in found}) > 1:
        raise OperatorError(f"{dataflow!r} is the beginning of {len(found)} runs; give more of it")
    location.examine(found[0].state_dir)
    return found[0].state_dir


def stores(root: Path) -> list[Place]:
    """All stores in a state directory, the shared one first."""
    places = [Place(root / "shared", root)] if (root / "shared").is_dir() else []
    for name, node in location.nodes(root):
        places.append(Place(root / name, root, node))
    return places


def all_or_one(place: Place) -> list[Place]:
    """All stores of the state directory, unless one was asked for."""
    if place.root is None or place.node is not None:
        return [existing(place)]
    location.examine(place.root)
    return stores(place.root) or [existing(place)]


def _check_owner(path: Path) -> None:
    if os.stat(path).st_uid != os.geteuid():
        raise OperatorError(
            f"{path} belongs to another user (uid {os.stat(path).st_uid}); run this as that user"
        )


# Keys


def key_of(written: str, escaped: bool = False) -> Key:
    """The key that was given on the command line: any bytes, or with `escaped` as `list` shows it."""
    return key_of_bytes(text.unescape(written) if escaped else os.fsencode(written))


def key_of_bytes(raw: bytes) -> Key:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return RawKey(raw)


def record(key: str, value: memoryview | bytes, sequence: int) -> dict[str, Any]:
    """What JSON says of every key."""
    return {**key_record(key), "size": len(value), "sequence": sequence}


def ttl_record(ttl: float | None) -> dict[str, float]:
    """What JSON says of a key that expires."""
    return {} if ttl is None else {"ttl": ttl}


def key_record(key: str) -> dict[str, Any]:
    """A key in JSON: as it is, and if it is no text, escaped and as base64."""
    raw = key.encode("utf-8", "surrogateescape")
    try:
        return {"key": raw.decode()}
    except UnicodeDecodeError:
        return {"key": text.visible(key), "key_base64": base64.b64encode(raw).decode()}


def missing(place: Place, key: Key) -> MissingKey:
    shown = text.visible(text.of_key(key))
    return MissingKey(f"there is no key {shown} in {place.path}; see `dora-state list`")


def entry(place: Place, store: Store, key: Key) -> tuple[memoryview, int]:
    """A value where it lies, and its sequence."""
    found = store._view(USER, key)
    if found is None:
        raise missing(place, key)
    return found


# Completion

_NOT_PLAIN = frozenset(" \\\"'`$&|;<>()*?[]{}~#!^")


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    with contextlib.suppress(StateError, OSError, ValueError):
        state_dir, store_dir = (_path(ctx.params.get(name)) for name in ("state_dir", "store"))
        place = find(ctx.params.get("node"), ctx.params.get("dataflow"), state_dir, store_dir)
        with existing(place).read() as store:
            keys = (key for key, *_ in store._scan(USER, views=True))
            return sorted(key for key in keys if key.startswith(incomplete) and _is_plain(key))
    return []


def _is_plain(word: str) -> bool:
    """Whether a shell takes it for this one word. It puts in unquoted what is completed, and others chose the key."""
    return word.isprintable() and not word.startswith("-") and _NOT_PLAIN.isdisjoint(word)


def _path(given: str | Path | None) -> Path | None:
    return Path(given) if given else None


def complete_node(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    with contextlib.suppress(StateError, OSError):
        root = state_directory(ctx.params.get("dataflow"), _path(ctx.params.get("state_dir")))
        nodes = (node for _, node in location.nodes(root))
        return [node for node in nodes if node.startswith(incomplete) and _is_plain(node)]
    return []


def complete_dataflow(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [run.name for run in run_record.runs() if run.name.startswith(incomplete)]
