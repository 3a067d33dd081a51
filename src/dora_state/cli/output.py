"""Tables, JSON lines and progress: what commands say, and to whom."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

_T = TypeVar("_T")
_LOOK_S = 0.1

format_option = click.option(
    "--format",
    "style",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people, or one JSON object on each line.",
)


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Upper-case columns, numbers to the right."""
    from tabulate import tabulate

    right = [bool(rows) and isinstance(rows[0][at], (int, Number)) for at in range(len(columns))]
    click.echo(
        tabulate(
            [[str(cell) for cell in row] for row in rows],
            headers=[name.upper() for name in columns],
            tablefmt="plain",
            disable_numparse=True,
            colalign=["right" if each else "left" for each in right] if rows else None,
        )
    )


class Number(str):
    """Text in a column of numbers."""


def json_line(record: dict[str, Any]) -> None:
    """In ASCII: what is escaped in a table is escaped here, too."""
    click.echo(json.dumps(record, allow_nan=False))


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere. Gives a function that is told how much of `total` is done in all."""
    if not sys.stderr.isatty() or total <= 0:
        yield lambda done: None
        return
    with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
        # Never back: what is measured may shrink (a draft is given its name), and click keeps such a step for later.
        yield lambda done: bar.update(max(0, min(done, total) - bar.pos))
        bar.update(total - bar.pos)


def watched(label: str, total: int, work: Callable[[], _T], done: Callable[[], int]) -> _T:
    """Does the work in a thread, and shows meanwhile how much of it is done. Ctrl-C is heard when it has ended."""
    if not sys.stderr.isatty():
        return work()
    results: list[_T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    with progress(label, total) as tell:
        thread.start()
        while thread.is_alive():
            thread.join(_LOOK_S)
            tell(done())
    if errors:
        raise errors[0]
    return results[0]
