"""dora-state get: one value."""

from __future__ import annotations

import sys

import click

from .._core import USER
from ..store import Store
from . import output, places, text, values
from .places import Place

_CHUNK = 1 << 20


@click.command()
@click.argument("key", shell_complete=places.complete_key)
@click.option("--raw", is_flag=True, help="The bytes as they are, also on a terminal.")
@click.option("-e", "--escaped", is_flag=True, help="KEY is written as `list` shows it.")
@output.format_option
@places.store_options
def get(place: Place, key: str, raw: bool, escaped: bool, style: str) -> None:
    """Show the value of a key.

    Decoded on a terminal; into a file or a pipe go its bytes, unchanged.
    """
    name = places.key_of(key, escaped)
    with places.existing(place).read() as store:
        value, sequence = places.entry(place, store, name)
        if style == "json":
            decoded = values.decode(value, text.of_key(name))
            record = places.record(text.of_key(name), value, sequence)
            record |= places.ttl_record(_ttl(store, text.of_key(name), sequence))
            content = values.plain(decoded.content)
            output.json_line({**record, "type": decoded.kind, "value": content})
        elif raw or not sys.stdout.isatty():
            for at in range(0, len(value), _CHUNK):
                sys.stdout.buffer.write(value[at : at + _CHUNK])
            sys.stdout.buffer.flush()
        else:
            for row in values.lines(values.decode(value, text.of_key(name))):
                click.echo(row)


def _ttl(store: Store, key: str, sequence: int) -> float | None:
    """What is left to this very version of the key; only a scan tells it."""
    for found, _, version, ttl in store._scan(USER, views=True):
        if (found, version) == (key, sequence):
            return ttl
    return None
