"""dora-state put: keeps one value."""

from __future__ import annotations

import json
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import click

from .. import codec
from ..errors import OperatorError
from . import places
from .places import Place
from .seconds import Seconds


@click.command()
@click.argument("key", shell_complete=places.complete_key)
@click.argument("value", required=False)
@click.option(
    "--file", type=click.Path(path_type=Path), help="The value is what this file holds; - is stdin."
)
@click.option("--json", "as_json", is_flag=True, help="VALUE is JSON, and kept as msgpack.")
@click.option(
    "--expected",
    type=click.IntRange(min=0),
    metavar="SEQUENCE",
    help="Only if the key is at this sequence still; 0: is not there.",
)
@click.option(
    "--ttl",
    type=Seconds(min_open=True),
    metavar="SECONDS",
    help="The key is missing again after so long.",
)
@click.option("-e", "--escaped", is_flag=True, help="KEY is written as `list` shows it.")
@places.store_options
def put(
    place: Place,
    key: str,
    value: str | None,
    file: Path | None,
    as_json: bool,
    expected: int | None,
    ttl: float | None,
    escaped: bool,
) -> None:
    """Keep a value under a key.

    The value is VALUE, or what --file holds, or stdin. Prints the sequence of the commit.

    The private store of an operator that is running is refused: the operator would not see the change.
    """
    name = places.key_of(key, escaped)
    if value is not None and file is not None:
        raise OperatorError("VALUE and --file exclude each other; give one of them")
    data = _read(value, file)
    if as_json:
        data = _packed(data)
    with places.existing(place).changed() as store:
        if expected is None:
            click.echo(store.put(name, data, ttl=ttl))
        else:
            click.echo(store.compare_and_put(name, data, expected=expected, ttl=ttl))
    place.warn_of_clean_end()


def _read(value: str | None, file: Path | None) -> Any:
    """A buffer. A file is mapped: it may be larger than the memory."""
    if value is not None:
        return os.fsencode(value)
    if file is None or str(file) == "-":
        return sys.stdin.buffer.read()
    with open(file, "rb") as opened:
        if not os.fstat(opened.fileno()).st_size:
            return opened.read()  # nothing, or a pipe, whose size is not known
        return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)


def _packed(data: Any) -> bytes:
    try:
        return codec.encode(json.loads(bytes(data)))
    except ValueError as error:
        raise OperatorError(
            f"the value is not JSON: {error}; leave out --json to keep it as it is"
        ) from None
