"""dora-state verify: checks every byte that counts.

A verification that makes writers wait would disturb a running dataflow, so it only reads. Compaction may move the log
on under it, which looks like damage; real damage is there again at the next look, and in the same place.
"""

from __future__ import annotations

import time

import click

from ..errors import CorruptionError
from . import output, places, text
from .places import Place

_LOOKS = 10


@click.command()
@output.format_option
@places.store_options
def verify(place: Place, style: str) -> int:
    """Check every byte of all stores.

    Every frame, record and index slot of the stores of the dataflow; or of one, with --node or
    --store. Ends with exit code 4 if a store is damaged. Changes nothing, and does not make a
    running dataflow wait.
    """
    rows = []
    damaged = False
    for each in places.all_or_one(place):
        frames, error = _verify(each)
        damaged = damaged or error is not None
        if style == "json":
            output.json_line(
                {
                    "store": each.name,
                    "node": each.node,
                    "path": str(each.path),
                    "frames": frames,
                    "ok": error is None,
                    "error": error,
                }
            )
        else:
            said = "ok" if error is None else text.visible(error)
            rows.append((each.name, output.Number("-" if frames is None else frames), said))
    if style == "table":
        output.table(("store", "frames", "state"), rows)
    if damaged:
        raise CorruptionError("a store is damaged; stop the dataflow, then run `dora-state repair`")
    return 0


def _verify(place: Place) -> tuple[int | None, str | None]:
    said = ""
    for _ in range(_LOOKS):
        try:
            with place.read() as store:
                stats = store.stats()
                total = stats["log_bytes"] + stats["live_bytes"]
                done = lambda store=store: store.stats()["verified_bytes"]  # noqa: E731
                return output.watched(f"verify {place.name}", total, store.verify, done), None
        except CorruptionError as error:
            if str(error) == said:
                break
            said = str(error)
            time.sleep(0.05)
    return None, said
