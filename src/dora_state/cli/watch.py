"""dora-state watch: changes as they come.

Reads only, so it cannot be woken by writers and looks ten times a second instead. A store may be replaced under its
eyes: by the next run that starts empty, by a repair, by an import; or it was opened before anybody kept an index for it
in this boot. Then its directory or its control page is another file, and it is opened again.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import click

from .._core import USER
from ..errors import Compacted, StoreError
from . import output, places, text, values
from .places import Place
from .seconds import Seconds

_LOOK_S = 0.1
_UUID = slice(24, 40)  # of a segment: docs/format.md
_Change = tuple[int, str, "bytes | None"]


@click.command()
@click.argument("prefix", default="", shell_complete=places.complete_key)
@click.option(
    "--after",
    type=click.IntRange(min=0),
    metavar="SEQUENCE",
    help="Begin after this commit.  [default: now]",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N changes.")
@click.option(
    "--timeout",
    type=Seconds(),
    metavar="SECONDS",
    help="End when nothing has come for so long.",
)
@output.format_option
@places.store_options
def watch(
    place: Place,
    prefix: str,
    after: int | None,
    count: int | None,
    timeout: float | None,
    style: str,
) -> None:
    """Show changes as they come.

    Of keys that begin with PREFIX, until Ctrl-C.
    """
    wanted = text.of_key(places.key_of(prefix))
    told = 0
    with contextlib.closing(_Follower(places.existing(place), after)) as follower:
        silent_since = time.monotonic()
        while timeout is None or time.monotonic() - silent_since < timeout:
            for sequence, key, value in follower.next_changes():
                if not key.startswith(wanted):
                    continue
                _show(sequence, key, value, style)
                silent_since = time.monotonic()
                told += 1
                if told == count:
                    return
            time.sleep(_LOOK_S)
            follower.look_again()


def _show(sequence: int, key: str, value: bytes | None, style: str) -> None:
    if style == "json":
        output.json_line(_record(sequence, key, value))
    else:
        shown = "(deleted)" if value is None else values.line(memoryview(value), key)
        click.echo(f"{sequence}  {text.visible(key)}  {shown}")
    sys.stdout.flush()


def _record(sequence: int, key: str, value: bytes | None) -> dict[str, object]:
    record = {"sequence": sequence, **places.key_record(key)}
    if value is None:
        return {**record, "deleted": True}
    decoded = values.decode(value, key)
    return {
        **record,
        "size": len(value),
        "type": decoded.kind,
        "value": values.plain(decoded.content),
    }


class _Follower:
    """The changes of a store, whatever becomes of its directory."""

    def __init__(self, place: Place, after: int | None) -> None:
        self._place = place
        self._store = place.read()
        self._seen = _identity(place)
        self._after = self._store.stats()["sequence"] if after is None else after
        self._news: Iterator[tuple[int, dict[str, bytes | None]]] | None = None

    def next_changes(self) -> Iterator[_Change]:
        """What has come since the last call."""
        try:
            if self._news is None:
                self._news = self._store.changes(after=self._after)
            for sequence, commit in self._news:
                self._after = sequence
                for key, value in commit.items():
                    yield sequence, key, value
        except Compacted:
            yield from self._resync()

    def _resync(self) -> Iterator[_Change]:
        """The commits are gone: the keys that are there now stand for them."""
        reached = self._store.stats()["sequence"]
        rows = [row for row in self._store._scan(USER) if row[2] > self._after]
        for key, value, sequence in sorted(rows, key=lambda row: row[2]):
            yield sequence, key, value
        self._after, self._news = reached, None

    def look_again(self) -> None:
        """Opens the store again if what is in its place now is not what was opened."""
        now = _identity(self._place)
        if now == self._seen or now is None:
            return
        try:
            store = self._place.read()
        except StoreError:  # it is just being made
            return
        if self._seen is None or now.uuid != self._seen.uuid:
            self._after = 0  # another store altogether
        self._store.close()
        self._store, self._seen, self._news = store, now, None

    def close(self) -> None:
        self._store.close()


class _Identity(NamedTuple):
    directory: int
    control: int
    uuid: bytes


def _identity(place: Place) -> _Identity | None:
    """Which store is at a place, and who keeps its index; None while there is none."""
    try:
        control = place.path / "control"
        log = next(path for path in place.path.iterdir() if path.suffix == ".log")
        with open(log, "rb") as file:
            uuid = file.read(_UUID.stop)[_UUID]
        number = control.stat().st_ino if control.exists() else 0
        return _Identity(place.path.stat().st_ino, number, uuid)
    except (OSError, StopIteration):
        return None
