"""dora-state export: the keys of a store as one portable file."""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import click

from .. import portable
from .._core import USER
from ..errors import OperatorError, StateError
from . import output, places, text
from .places import Place


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), metavar="FILE")
@click.option("--prefix", default="", help="Only keys that begin with this.")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@places.store_options
def export(place: Place, file: Path, prefix: str, force: bool) -> None:
    """Write a store into one portable file.

    All keys as of one point; - is stdout. FILE is there when it is complete and on disk, and not
    before. Any machine can import it.
    """
    wanted = text.of_key(places.key_of(prefix))
    if str(file) != "-" and file.exists() and not force:
        raise OperatorError(f"{file} is there already; choose another name, or use --force")
    with places.existing(place).read() as store:
        stats = store.stats()
        entries = (
            (key.encode("utf-8", "surrogateescape"), value, ttl)
            for key, value, _, ttl in store._scan(USER, views=True)
            if key.startswith(wanted)
        )
        header = {"sequence": stats["sequence"], "node": place.node}
        with _opened(file) as out, output.progress("export", stats["live_bytes"]) as tell:
            for done in portable.write(out, entries, header):
                tell(done)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    """The file takes its name when it is complete."""
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with open(draft, "xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        draft.replace(file)
    except OSError as error:
        if error.filename in (None, str(draft)) and not isinstance(error, StateError):
            error.filename = str(file)
        raise
    finally:
        draft.unlink(missing_ok=True)
