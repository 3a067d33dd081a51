"""What an operator calls: save_state, delete_state and restore_info.

They work as module functions and, put there by the runtime, as methods of the operator. Inside a
handler (`__init__`, `restore_state`, `on_event`) they stage, and the runtime makes everything
staged one commit together with the position in the input. A call belongs to a handler by context
variable; from another thread, or after the handler has ended, it commits at once.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from dora_state import _core
from dora_state.errors import OperatorError, TooLarge


class Stage(Protocol):
    """Where a handler's saves wait for their commit. runtime/step.py has it."""

    @property
    def number(self) -> int: ...
    def put(self, key: str, value: bytes | None) -> bool: ...
    def forget(self, key: str) -> None: ...


class Session(Protocol):
    """The running operator's way to its store. runtime/worker.py has it."""

    def commit_now(self, key: str, value: bytes | None) -> None: ...


FIELDS_PREFIX = "@"  # of the keys that typed_state.py writes


@dataclass(frozen=True)
class RestoreInfo:
    """Why this incarnation of the operator was started, and what it has missed."""

    reason: str
    """"start": the first of its host. "exception", "hang": of its predecessor. "exit": its predecessor was killed, or
    ended without an exception. "asked": its predecessor returned DoraStatus.STOP, under restart_policy "always".
    "conflict": the shared store had changed under its predecessor's handler."""
    detail: str
    """The predecessor's end in words, as far as it is known so early."""
    incarnation: int
    """Counts every process that was to be the operator; saved state belongs to the one that committed it."""
    replayed: int
    """Events that are handed out again: 1 if the predecessor left one unfinished, else 0."""
    dropped: dict[str, int]
    """Events of each input that no operator will see, because they came while none took them and their queue was full:
    those that no incarnation was told of yet, up to the moment of the start."""
    rolled_back_to: int | None = None
    """The state is that of a snapshot: of the event with this number. None: it is the last one that was committed."""
    undone: int = 0
    """How many committed events had their effects undone by that."""


restored: RestoreInfo | None = None  # set in a worker, before __init__
KEY_BYTES = 65535  # DS_KEY_LIMIT of dora_state.h
VALUE_BYTES = 1 << 30  # of one saved value, which each restart reads before it handles an event

session: Session | None = None  # set in a worker, before the operator's file is imported
stage: ContextVar[Stage | None] = ContextVar("dora_state.stage", default=None)


def save_state(key: str, value: Any, *, flush: bool = False) -> None:
    """Save `value` under `key` in the operator's private store.

    The value is copied now and committed when the handler returns, in one commit with all other
    saves of the handler; if the handler raises, nothing of it is saved. After a crash
    `restore_state` receives what was last committed.

    Args:
        key: any str that does not begin with "@".
        value: bytes or any other C-contiguous buffer (numpy array, Arrow buffer, memoryview) of at most
            VALUE_BYTES; more is TooLarge.
        flush: commit this save by itself, now. The event may still be handled again. In `__init__` and
            `restore_state` it changes nothing: what they save counts when the state was accepted.
    """
    _change(key, _copy(key, value), flush)


def delete_state(key: str, *, flush: bool = False) -> None:
    """Remove `key` from the operator's private store. A key that is not there is no error."""
    _change(key, None, flush)


def restore_info() -> RestoreInfo:
    """Why this incarnation was started. In `__init__`, `restore_state`, and as long as it lives."""
    if restored is None:
        raise OperatorError(
            "restore_info works in an operator that `dora-state run` hosts, from its __init__ on"
        )
    return restored


def _change(key: str, value: bytes | None, flush: bool) -> None:
    if not isinstance(key, str):
        raise TypeError(f"a key is a str, not {type(key).__name__}: {key!r:.80}")
    if key[:1] == FIELDS_PREFIX:
        raise ValueError(
            f"the key {key!r:.80} begins with {FIELDS_PREFIX!r}, as those of state() do; choose another"
        )
    if not key.isascii() or len(key) > KEY_BYTES:
        _check_key(key)
    if session is None:
        raise OperatorError(
            "save_state and delete_state work in an operator that `dora-state run` hosts; "
            "a custom node can use kvs_write, or a Store of its own"
        )
    handler = stage.get()
    if flush and handler is not None and not handler.number:
        flush = False  # a state that is not restored yet must not be overwritten
    if flush or handler is None or not handler.put(key, value):
        session.commit_now(key, value)
        if flush and handler is not None:
            handler.forget(key)


def _check_key(key: str) -> None:
    """Refuse here, where the operator can do something about it, what the commit would refuse."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the key {key!r:.80} cannot be written as UTF-8: {error.reason}"
        ) from None
    if size > KEY_BYTES:
        raise TooLarge(
            f"the key {key[:40]!r}... has {size} bytes, the limit is {KEY_BYTES}; "
            "put what makes it long into the value"
        )


def _copy(key: object, value: Any) -> bytes:
    if type(value) is bytes:
        _check_size(key, len(value))
        return value
    try:
        view = memoryview(value)
    except TypeError:
        raise TypeError(
            f"save_state({key!r:.80}): a {type(value).__name__} is not a buffer; "
            "save bytes, for example msgpack.packb(value)"
        ) from None
    if not view.c_contiguous:
        raise ValueError(
            f"save_state({key!r:.80}): the buffer is not C-contiguous; "
            "make it so with numpy.ascontiguousarray"
        )
    _check_size(key, view.nbytes)
    return view.tobytes()


def _check_size(key: object, size: int) -> None:
    if size > VALUE_BYTES:
        raise TooLarge(
            f"save_state({key!r:.80}): the value has {size} bytes, the limit is {VALUE_BYTES}; "
            "save less, or in pieces under keys of their own"
        )


_core.on_save(save_state, stage, _check_size, VALUE_BYTES)  # for Cython operators: docs/cython.md
