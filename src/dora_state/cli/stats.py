"""dora-state stats: what the stores of a dataflow hold, and how its operators are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from .. import location, lockfile
from ..errors import CorruptionError
from ..runtime import status
from . import output, places, text
from .places import Place


@click.command()
@output.format_option
@places.store_options
def stats(place: Place, style: str) -> None:
    """Show all stores, and how the operators are.

    Those of the dataflow; or one store, with --node or --store.
    """
    chosen = places.all_or_one(place)
    found = [(each, *_read(each)) for each in chosen]
    if style == "json":
        for each, numbers, error in found:
            output.json_line(
                {
                    "store": each.name,
                    "node": each.node,
                    "path": str(each.path),
                    **numbers,
                    "error": error,
                }
            )
        for node, record in _operators(chosen).items():
            output.json_line({"operator": node, **json.loads(json.dumps(record, default=str))})
        _refuse_damage(found)
        return
    if place.root is not None:
        click.echo(f"state of {text.visible(str(place.root))}\n")
    output.table(
        ("store", "keys", "live", "log", "sequence", "state"), [_row(*each) for each in found]
    )
    if operators := _operators(chosen):
        click.echo()
        columns = (
            "operator",
            "state",
            "host",
            "worker",
            "restarts",
            "replayed",
            "dropped",
            "dead letters",
            "updated",
            "last crash",
        )
        output.table(columns, [_operator_row(*each) for each in operators.items()])
    _refuse_damage(found)


def _refuse_damage(found: list[tuple[Place, dict[str, int], str | None]]) -> None:
    """For the exit code, when all has been shown."""
    if any(isinstance(error, str) for _, _, error in found):
        raise CorruptionError("a store is damaged; stop the dataflow, then run `dora-state repair`")


def _read(place: Place) -> tuple[dict[str, int], str | None]:
    """The numbers of a store, or why there are none."""
    try:
        with place.read() as store:
            return store.stats(), None
    except CorruptionError as error:
        return {}, str(error)


def _row(place: Place, numbers: dict[str, int], error: str | None) -> tuple[object, ...]:
    if error is not None:
        return (
            place.name,
            output.Number(),
            output.Number(),
            output.Number(),
            output.Number(),
            "damaged",
        )
    live, log = (output.Number(text.size(numbers[name])) for name in ("live_bytes", "log_bytes"))
    return (
        place.name,
        output.Number(numbers["keys"]),
        live,
        log,
        output.Number(numbers["sequence"]),
        "ok",
    )


def _operators(chosen: list[Place]) -> dict[str, dict[str, Any]]:
    """What the runtime says of the operators, from the shared store, if that is among those to be shown."""
    for place in chosen:
        if place.root is not None and place.node is None:
            try:
                with place.read() as store:
                    records = sorted(status.read_all(store).items())
                return {node: {**record, **_life(place.root, node)} for node, record in records}
            except CorruptionError:
                pass
    return {}


def _life(root: Path, node: str) -> dict[str, Any]:
    """Whether the host that wrote the record is still there: one that was killed could not take it back."""
    try:
        return {"alive": lockfile.is_held(root / f"{location.escape(node)}.lock")}
    except OSError:  # not ours to look at
        return {}


def _operator_row(node: str, record: dict[str, Any]) -> tuple[object, ...]:
    crash = record.get("last_crash") or {}
    state = record.get("state", "?")
    killed = state != "ended" and not record.get("alive", True)
    pids = [None if killed else record.get(name) for name in ("host_pid", "worker_pid")]
    numbers = [output.Number(pid or "-") for pid in pids]
    counts = [output.Number(record.get(name, 0)) for name in ("restarts", "replayed")]
    counts.append(output.Number(sum(record.get("dropped", {}).values())))
    counts.append(output.Number(record.get("dead_letters", {}).get("kept", 0)))
    age = max(0.0, time.time() - float(record.get("updated", 0)))
    said = text.shorten(text.visible(str(crash.get("reason") or "-")), 40)
    return (
        text.visible(node),
        "killed" if killed else state,
        *numbers,
        *counts,
        f"{age:.0f} s ago",
        said,
    )
