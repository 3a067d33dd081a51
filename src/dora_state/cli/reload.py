"""dora-state reload: new code for a running operator."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import StateError
from ..runtime import control
from . import places, text
from .seconds import WEEK_S, Seconds


@click.command()
@click.argument("node", metavar="NODE", shell_complete=places.complete_node)
@places.dataflow_option
@places.state_dir_option
@click.option(
    "--timeout",
    type=Seconds(max=WEEK_S),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the handler that runs now, and for the new __init__.",
)
def reload(node: str, dataflow: str | None, state_dir: Path | None, timeout: float) -> None:
    """Start the new code of a running operator's file between two events.

    The new object gets the attributes of the old one, as in dora's own reload. If the new code fails, the old object
    goes on as it was.
    """
    place = places.existing(places.find(node, dataflow, state_dir, None))
    try:
        answer = control.ask(control.path_beside(place.path), {"do": "reload"}, timeout)
    except TimeoutError:
        raise StateError(
            f"node {node} has not reloaded within {timeout:g} s and will when its handler returns; see its log"
        ) from None
    if answer is None:
        raise StateError(f"node {node} is not running; its next start takes the new code anyway")
    if "error" in answer:
        raise StateError(answer["error"])
    if failure := answer.get("failure"):
        click.echo(text.visible_lines(failure["traceback"].rstrip()), err=True)
        raise StateError(
            f"the new code of node {node} failed, and the old goes on: {failure['error']}; mend it and reload again"
        )
    if "died" in answer:
        raise StateError(
            f"node {node} died before it had reloaded ({answer['died']}), and its successor starts with the new code;"
            " see its log, and mend the file if it does not come back"
        )
    if "reloaded" in answer:
        click.echo(f"{node} runs the new code")
    else:
        click.echo(f"{node} was not running, and is started with the new code")
