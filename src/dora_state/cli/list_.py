"""dora-state list: the keys of a store."""

from __future__ import annotations

import click

from .._core import USER
from . import output, places, text, values
from .places import Place

_Row = tuple[str, output.Number, int, output.Number, str]


@click.command("list")
@click.argument("prefix", default="", shell_complete=places.complete_key)
@click.option("--keys", is_flag=True, help="Only the keys, one a line, escaped.")
@output.format_option
@places.store_options
def list_(place: Place, prefix: str, keys: bool, style: str) -> None:
    """List keys, with the beginning of their values.

    Those that begin with PREFIX, as of one point.
    """
    wanted = text.of_key(places.key_of(prefix))
    rows: list[_Row] = []
    with places.existing(place).read() as store:
        found = store._scan(USER, views=True)
        for key, value, sequence, ttl in sorted(row for row in found if row[0].startswith(wanted)):
            shown = values.line(value, key)
            if keys:
                click.echo(text.visible(key))
            elif style == "json":
                record = {**places.record(key, value, sequence), **places.ttl_record(ttl)}
                output.json_line({**record, "value": shown})
            else:
                size = output.Number(text.size(len(value)))
                lives_s = output.Number("" if ttl is None else f"{ttl:.1f} s")
                rows.append((text.visible(key), size, sequence, lives_s, shown))
    if style == "table" and not keys:
        _table(rows)


def _table(rows: list[_Row]) -> None:
    """A time to live has a column when there is one."""
    if any(row[3] for row in rows):
        output.table(("key", "size", "sequence", "ttl", "value"), rows)
    else:
        columns = ("key", "size", "sequence", "value")
        output.table(columns, [(*row[:3], row[4]) for row in rows])
