"""How an operator's file becomes a module with a class, and what that takes.

Everything that can be seen to be wrong without running the class is refused here, with the file's path.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from dora_state import shared_writes
from dora_state.errors import OperatorError
from dora_state.runtime import killpoint, process

_SPARE_MIB = 64
# An operator's `handover`: its successor is built when it is gone, descriptors and all, or as soon as it is dead.
GONE, DEAD = "gone", "dead"


def file_signature(path: str) -> tuple[int, int]:
    """Changes when the file does."""
    status = os.stat(path)
    return status.st_mtime_ns, status.st_size


@contextlib.contextmanager
def no_bytecode(first: bool) -> Iterator[None]:
    """A file that turns out to be no operator must not leave a __pycache__ behind, and only the first
    import finds that out.
    """
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = before or first
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def load(
    path: Path, number: int = 0, name: str | None = None, class_name: str = "Operator"
) -> ModuleType:
    """Import an operator's file as dora does: its folder on sys.path, under the file's name, or anew
    under the name that it has already.
    """
    killpoint.reach("import", number)
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if name is None:
        # operator.py must not replace the standard module of that name.
        name = path.stem if path.stem not in sys.modules else f"dora_operator_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OperatorError(f"{path} cannot be imported as Python; the file name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.argv = [str(path)]
    spec.loader.exec_module(module)
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise OperatorError(
            f"{path} has no class {class_name}; "
            "define one with a method on_event(self, event, send_output)"
        )
    if not callable(getattr(cls, "on_event", None)):
        raise OperatorError(
            f"{path}: class {class_name} has no method on_event; "
            "define on_event(self, event, send_output)"
        )
    if shared_writes_of(cls) not in shared_writes.MODES:
        raise OperatorError(
            f"{path}: {class_name}.shared_writes is {shared_writes_of(cls)!r:.80}; "
            f"use one of {', '.join(map(repr, shared_writes.MODES))}"
        )
    handover = getattr(cls, "handover", GONE)
    if handover not in (GONE, DEAD):
        raise OperatorError(
            f"{path}: {class_name}.handover is {handover!r:.80}; use {GONE!r} or {DEAD!r}"
        )
    return module


def shared_writes_of(cls: Any) -> Any:
    return getattr(cls, "shared_writes", shared_writes.AT_ONCE)


def why_late(before: process.Footprint, after: process.Footprint, held: list[str]) -> str:
    """What importing the operator's file has taken that two processes should not have at once."""
    if held:
        return f"opened {', '.join(held)}"
    if after.threads > before.threads:
        return f"started {after.threads - before.threads} threads"
    grown = (after.resident_bytes - before.resident_bytes) >> 20
    return f"took {grown} MiB of memory" if grown >= _SPARE_MIB else ""
