"""dora-state list: the keys of a store."""

from __future__ import annotations

import click

from .._core import USER
from . import output, places, text, values
from .places import Place


@click.command("list")
@click.argument("prefix", default="", shell_complete=places.complete_key)
@click.option("--keys", is_flag=True, help="Only the keys, one a line, escaped.")
@output.format_option
@places.store_options
def list_(place: Place, prefix: str, keys: bool, style: str) -> None:
    """List the keys that begin with PREFIX, as of one point, with the beginning of their values."""
    wanted = text.of_key(places.key_of(prefix))
    rows = []
    with places.existing(place).read() as store:
        found = store._scan(USER, views=True)
        for key, value, sequence in sorted(row for row in found if row[0].startswith(wanted)):
            if keys:
                click.echo(text.visible(key))
            elif style == "json":
                output.json_line(
                    {**places.record(key, value, sequence), "value": values.line(value, key)}
                )
            else:
                size = output.Number(text.size(len(value)))
                rows.append((text.visible(key), size, sequence, values.line(value, key)))
    if style == "table" and not keys:
        output.table(("key", "size", "sequence", "value"), rows)
