"""A store is replaced by a changed copy of itself, in one step.

For a change that is too large for one commit and may still be there only whole: nobody may have the store open. Then

    1. lock       the directory and its control page, as `repair` does (csrc/repair.c): openers wait meanwhile
    2. copy       what is the truth of the store, into `<path>.draft`: the log, the floor; blobs are linked
    3. change     the copy, in as many commits as it takes; verify it, close it, put it on disk
    4. exchange   the two directories swap names, in one step
    5. remove     what is at `<path>.draft` now, the store as it was

Killed before 4, the store is as it was; after it, changed. What is left at `<path>.draft` is of no use either way, and
goes with the next replacement. The copy has the sequences of the store and goes on from them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from . import _core
from .errors import StoreInUse
from .store import Store

_TRUTH = ("*.log", "floor")  # docs/format.md; the rest is derived
_BLOBS = "*.blob"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Store]:
    """Gives the copy, to be changed. It takes the store's place when the block ends well; else nothing has changed.

    Raises StoreInUse if anybody has the store open, UnsupportedError where a file system cannot exchange directories.
    """
    path = path.resolve()
    draft = path.with_name(f"{path.name}.draft")
    with _locked(path):
        if draft.exists():  # of somebody who died
            shutil.rmtree(draft)
        try:
            _copy(path, draft)
            with Store(draft, create=False) as copy:
                yield copy
                copy.verify()
                copy.sync()
            _core.exchange(path, draft)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with contextlib.ExitStack() as undo:
        for name in (path, path / "control"):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                descriptor = os.open(name, flags)
            except FileNotFoundError:
                if name == path:
                    raise
                continue  # nobody has used the store since it was copied or the machine started
            undo.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreInUse(
                    f"{path} is open in another process, and this change takes more than one commit;"
                    " stop the dataflow and whoever else uses the store"
                ) from None
        yield


def _copy(path: Path, draft: Path) -> None:
    draft.mkdir(mode=0o700)
    for pattern in _TRUTH:
        for source in sorted(path.glob(pattern)):
            shutil.copyfile(source, draft / source.name)
            (draft / source.name).chmod(0o600)
    for blob in path.glob(_BLOBS):
        os.link(blob, draft / blob.name)
    for made in (*draft.iterdir(), draft):
        descriptor = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
