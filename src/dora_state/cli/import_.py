"""dora-state import: the keys of a portable file into a store, all of them or none.

A file that fits into one commit becomes one, also in the shared store of a running dataflow: every reader sees all of
it or nothing. A larger one is put into a copy of the store, which then takes its place in one step (replacement.py);
nobody may have the store open for that. That a file is damaged may show only at its very end, so nothing is committed
or replaced before.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from .. import location, portable, replacement
from .._core import USER
from ..errors import Conflict, OperatorError
from ..store import Store
from . import output, places, text
from .places import Key, Place

# What one commit takes: well below the limit of the engine, which moves values of more than 64 KiB out of the log.
_COMMIT_BYTES = 32 << 20
_MEMORY_BYTES = 256 << 20
_INLINE_BYTES = 64 << 10
_RECORD_BYTES = 64
_Entry = tuple[Key, bytes, float | None]


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@click.option(
    "--overwrite", is_flag=True, help="Replace the values of keys that are there already."
)
@click.option(
    "--create", is_flag=True, help="Make the store and its state directory if they are not there."
)
@places.store_options
def import_(place: Place, file: Path, overwrite: bool, create: bool) -> None:
    """Put what `export` has written into a store.

    All keys of FILE, or none; - is stdin. Keys that are not in FILE stay as they are. A large file
    needs the store for itself: stop the dataflow first.
    """
    if not create:
        places.existing(place)
    with _opened(file) as opened:
        reader = portable.Reader(opened, text.visible(str(file)))
        size = os.fstat(opened.fileno()).st_size
        with output.progress("import", size) as tell:
            count = _import(place, _told(reader, tell), overwrite, create)
    click.echo(f"{count} keys")
    place.warn_of_clean_end()


def _opened(file: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdin.buffer) if str(file) == "-" else open(file, "rb")


def _told(reader: portable.Reader, tell: Callable[[int], None]) -> Iterator[_Entry]:
    done = 0
    for raw, value, ttl in reader.entries():
        done += len(value)
        tell(done)
        yield places.key_of_bytes(raw), value, ttl


def _import(place: Place, entries: Iterator[_Entry], overwrite: bool, create: bool) -> int:
    first, is_all = _take(entries)
    if create:
        _create(place)
    with places.existing(place).held():
        if is_all:
            return _in_one_commit(place, first, overwrite)
        with replacement.replacing(place.path) as copy:
            count = _put(place, copy, first, overwrite)
            while not is_all:
                more, is_all = _take(entries)
                count += _put(place, copy, more, overwrite)
            return count


def _take(entries: Iterator[_Entry]) -> tuple[list[_Entry], bool]:
    """As many entries as one commit takes, and whether the file ends with them, intact."""
    taken = []
    logged = memory = 0
    for key, value, ttl in entries:
        taken.append((key, value, ttl))
        logged += _RECORD_BYTES + len(key) * 4 + min(len(value), _INLINE_BYTES)
        memory += len(value)
        if logged >= _COMMIT_BYTES or memory >= _MEMORY_BYTES:
            return taken, False
    return taken, True


def _in_one_commit(place: Place, entries: list[_Entry], overwrite: bool) -> int:
    with Store(place.path, create=False) as store:
        return _put(place, store, entries, overwrite)


def _put(place: Place, store: Store, entries: list[_Entry], overwrite: bool) -> int:
    batch = store.batch()
    for key, value, ttl in entries:
        batch.put(key, value, expected=None if overwrite else 0, ttl=ttl)
    try:
        batch.commit()
    except Conflict:
        there = [key for key, _, _ in entries if store._view(USER, key) is not None]
        if not there:  # not any more
            raise
        shown = text.visible(text.of_key(there[0]))
        raise OperatorError(
            f"{len(there)} of the keys are in {place.path} already, such as {shown};"
            " use --overwrite to replace their values"
        ) from None
    return len(entries)


def _create(place: Place) -> None:
    if place.root is not None:
        location.prepare(place.root, place.path.name)
    Store(place.path).close()
