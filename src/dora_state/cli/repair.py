"""dora-state repair: a new store of what is intact in a damaged one."""

from __future__ import annotations

from pathlib import Path

import click

from .. import store as engine
from . import output, places, text
from .places import Place


@click.command()
@output.format_option
@places.store_options
def repair(place: Place, style: str) -> None:
    """Make a new store of what is intact.

    It takes the place of the damaged one, which is kept beside it. Nobody may have the store open.
    See docs/consistency.md for what is lost and what is not.
    """
    with places.existing(place).held():
        path = place.path.resolve()
        draft = path.with_name(f"{path.name}.repaired-draft")
        done = output.watched(
            f"repair {place.name}", _bytes(path), lambda: engine.repair(path), lambda: _bytes(draft)
        )
    if style == "json":
        output.json_line({"store": place.name, **done._asdict()})
        return
    lost = output.Number(text.size(done.dropped_bytes))
    first = output.Number("-" if done.first_damage is None else done.first_damage)
    counts = (output.Number(done.commits), output.Number(done.damages), first, lost)
    columns = ("store", "commits", "damages", "first at", "dropped", "lost values", "kept as")
    output.table(
        columns,
        [(place.name, *counts, output.Number(done.lost_blobs), text.visible(done.damaged_path))],
    )


def _bytes(directory: Path) -> int:
    """Of its log, as far as blocks are behind it."""
    try:
        return sum(path.stat().st_size for path in directory.glob("*.log"))
    except OSError:
        return 0
