"""dora-state compact: makes a directory small at once."""

from __future__ import annotations

import click

from . import output, places, text
from .places import Place


@click.command()
@output.format_option
@places.store_options
def compact(place: Place, style: str) -> None:
    """Drop all that is overwritten or deleted.

    Compaction runs by itself; this is for a small directory before a copy.
    """
    with places.existing(place).changed() as store:
        before = store.stats()
        moved = before["relocated_bytes"]

        def done() -> int:
            return store.stats()["relocated_bytes"] - moved

        output.watched(f"compact {place.name}", before["live_bytes"], store.compact, done)
        after = store.stats()
    if style == "json":
        output.json_line(
            {
                "store": place.name,
                "before_bytes": before["log_bytes"],
                "after_bytes": after["log_bytes"],
            }
        )
        return
    sizes = [output.Number(text.size(each["log_bytes"])) for each in (before, after)]
    output.table(("store", "before", "after"), [(place.name, *sizes)])
