"""dora-state dead-letters: events that an operator has failed on too often, and what becomes of them.

Looking reads the private store, running or not. A change is asked of the host while it runs
(runtime/control.py); otherwise it is made here, under the lock that a host would take.
"""

from __future__ import annotations

import datetime
import json
import sys
from typing import Any

import click

from .. import location
from ..errors import OperatorError, StateError
from ..runtime import control, dead_letter
from ..runtime.dead_letter import Content, Letter, Letters
from . import output, places, text, values
from .failure import MissingKey
from .places import Place

_PATIENCE_S = 30.0
_SHOWN = 2000  # characters of a value


@click.group("dead-letters")
def dead_letters() -> None:
    """Events that an operator has failed on too often: look at them, hand them out again, forget them."""


@dead_letters.command("list")
@output.format_option
@places.store_options
def list_letters(place: Place, style: str) -> None:
    """List the dead letters of all operators of the dataflow, or of one with --node; oldest first."""
    found = [(each, letter) for each in _operators(place) for letter in _read(each).letters]
    if style == "json":
        for each, letter in found:
            output.json_line(_record(each, letter))
        return
    columns = ("node", "number", "input", "size", "attempts", "time", "reason")
    output.table(columns, [_row(each, letter) for each, letter in found])
    dropped = sum(_read(each).dropped for each in _operators(place))
    if dropped:
        click.echo(f"{dropped} older ones were dropped, as no more are kept")


@dead_letters.command("show")
@click.argument("number", type=int)
@output.format_option
@places.store_options
def show(place: Place, number: int, style: str) -> None:
    """Show a dead letter with its event and the traceback of its last attempt."""
    one = _operator(place)
    with one.read() as store:
        letter = _find(one, dead_letter.read(store), number)
        content = dead_letter.content(store, number)
    if style == "json":
        output.json_line({**_record(one, letter), **_content_record(content)})
        return
    for name, said in _record(one, letter).items():
        click.echo(f"{name}: {text.visible(str(said))}")
    if content is None:
        click.echo("the event was too large to be kept")
        return
    for name, said in content.event.items():
        click.echo(f"event {name}: {text.shorten(text.visible(_plainly(said)), _SHOWN)}")
    if content.traceback:
        click.echo(f"\n{text.visible_lines(content.traceback.rstrip())}")


@dead_letters.command("replay")
@click.argument("numbers", type=int, nargs=-1, metavar="NUMBER...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@places.store_options
def replay(place: Place, numbers: tuple[int, ...], everything: bool) -> None:
    """Hand dead letters out again, as new events: now, or when the dataflow is started the next time."""
    one = _operator(place)
    chosen = _choose(one, numbers, everything, replays=True)
    if not chosen:
        return
    if _ask(one, "replay", chosen):
        click.echo(f"{_letters(chosen)} handed out again")
        return
    with one.changed() as store:
        known = dead_letter.read(store)
        _check(one, known, chosen)
        dead_letter.check(known, chosen)
        dead_letter.mark(store, set(chosen))
        if one.root is not None:
            location.adopt_next(one.root, one.path.name)
    click.echo(
        f"{_letters(chosen)} handed out first by the next run, which goes on with the state that is there"
    )


@dead_letters.command("drop")
@click.argument("numbers", type=int, nargs=-1, metavar="NUMBER...")
@click.option("--all", "everything", is_flag=True, help="All of them.")
@places.store_options
def drop(place: Place, numbers: tuple[int, ...], everything: bool) -> None:
    """Forget dead letters."""
    one = _operator(place)
    chosen = _choose(one, numbers, everything)
    if not chosen:
        return
    if not _ask(one, "drop", chosen):
        with one.changed() as store:
            _check(one, dead_letter.read(store), chosen)
            dead_letter.drop(store, set(chosen))
    click.echo(f"{_letters(chosen)} dropped")


def _letters(numbers: list[int]) -> str:
    return "1 dead letter is" if len(numbers) == 1 else f"{len(numbers)} dead letters are"


# Which operators, which letters


def _operators(place: Place) -> list[Place]:
    return [each for each in places.all_or_one(place) if each.root is None or each.node is not None]


def _operator(place: Place) -> Place:
    """The one that is meant; the only one need not be named."""
    if place.root is None or place.node is not None:
        return places.existing(place)
    known = _operators(place)
    if len(known) == 1:
        return known[0]
    names = ", ".join(each.name for each in known) or "none"
    raise OperatorError(f"which operator is meant (there is {names})?; name its node with --node")


def _read(place: Place) -> Letters:
    with place.read() as store:
        return dead_letter.read(store)


def _find(place: Place, known: Letters, number: int) -> Letter:
    letter = known.find(number)
    if letter is None:
        raise MissingKey(
            f"{place.name} has no dead letter {number}; see `dora-state dead-letters list`"
        )
    return letter


def _choose(
    place: Place, numbers: tuple[int, ...], everything: bool, *, replays: bool = False
) -> list[int]:
    """Refused, if one of them is not there, before anything is done."""
    if bool(numbers) == everything:
        raise OperatorError("which dead letters are meant?; give their numbers, or --all")
    known = _read(place)
    if everything:
        return [
            each.number
            for each in known.letters
            if not each.replay and not (replays and each.is_stop)
        ]
    for number in numbers:
        _find(place, known, number)
    return sorted(set(numbers))


def _check(place: Place, known: Letters, numbers: list[int]) -> None:
    for number in numbers:
        _find(place, known, number)


def _ask(place: Place, what: str, numbers: list[int]) -> bool:
    """Ask the running host to do it. False: there is none."""
    request = {"do": what, "numbers": numbers}
    answer = control.ask(control.path_beside(place.path), request, _PATIENCE_S)
    if answer is not None and "error" in answer:
        raise StateError(answer["error"])
    return answer is not None


# Showing


def _record(place: Place, letter: Letter) -> dict[str, Any]:
    return {
        "node": place.node or str(place.path),
        "number": letter.number,
        "input": letter.input_id,
        "type": letter.type,
        "size": letter.size_bytes,
        "attempts": letter.attempts,
        "time": _time(letter),
        "reason": letter.reason,
        "replay": letter.replay,
    }


def _time(letter: Letter) -> str:
    when = datetime.datetime.fromtimestamp(letter.time).astimezone()
    return when.isoformat(timespec="milliseconds")


def _row(place: Place, letter: Letter) -> tuple[object, ...]:
    reason = "waits for its replay" if letter.replay else letter.reason
    return (
        place.name,
        output.Number(letter.number),
        text.visible(letter.input_id or f"({letter.type})"),
        output.Number(text.size(letter.size_bytes)),
        output.Number(letter.attempts),
        _time(letter)[:19],
        text.shorten(text.visible(reason), 50),
    )


def _content_record(content: Content | None) -> dict[str, Any]:
    if content is None:
        return {"event": None, "traceback": None}
    return {"event": values.plain(_as_lists(content.event)), "traceback": content.traceback}


def _as_lists(event: dict[str, Any]) -> dict[str, Any]:
    """Arrow arrays as what JSON has for them."""
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None:
        return event
    return {
        name: said.to_pylist() if isinstance(said, pyarrow.Array) else said
        for name, said in event.items()
    }


def _plainly(said: Any) -> str:
    if isinstance(said, dict):
        return json.dumps(values.plain(said), ensure_ascii=False)
    return said if isinstance(said, str) else repr(said)
