"""dora-state run: hosts an operator as a node of a dataflow."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ..errors import OperatorError
from .seconds import WEEK_S, Seconds

# The policy has the same bound and is imported later: see `run`.
_SECONDS = Seconds(max=WEEK_S)


@click.command()
@click.argument("operator", type=click.Path(path_type=Path), metavar="OPERATOR.py")
@click.option(
    "--restart-policy",
    type=click.Choice(["never", "on-failure", "always"]),
    default="on-failure",
    show_default=True,
    help="When an operator that ended is started again.",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Restarts without a handled event within the window before it counts as broken; 0: no limit.",
)
@click.option(
    "--restart-delay",
    type=_SECONDS,
    default=0.1,
    show_default=True,
    help="Seconds before the second such restart, doubled each time. The first is immediate.",
)
@click.option(
    "--max-restart-delay",
    type=_SECONDS,
    default=10.0,
    show_default=True,
    help="The longest delay, in seconds.",
)
@click.option(
    "--restart-window",
    type=_SECONDS,
    default=60.0,
    show_default=True,
    help="Seconds after which a restart is forgotten; 0: never.",
)
@click.option(
    "--exhausted",
    type=click.Choice(["degraded", "stop"]),
    default="degraded",
    show_default=True,
    help="What becomes of a broken operator: silent, with a try now and then, or the end of the node.",
)
@click.option(
    "--degraded-retry",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds between the tries of a degraded operator.",
)
@click.option(
    "--max-event-attempts",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often an event is tried before it goes to the dead letters; 0: for ever.",
)
@click.option(
    "--max-restore-attempts",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How often a state is tried before the snapshot before it is; 0: for ever.",
)
@click.option(
    "--start-deadline",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds in __init__ without an output, after which the log says so; 0: never.",
)
@click.option(
    "--restore-deadline",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    help="The same for restore_state.",
)
@click.option(
    "--event-deadline",
    type=_SECONDS,
    default=30.0,
    show_default=True,
    help="The same for on_event.",
)
@click.option(
    "--kill-hung",
    multiple=True,
    type=click.Choice(["start", "restore", "event"]),
    help="Kill the operator when this deadline has passed, its stacks in the log. May be repeated.",
)
@click.option(
    "--durability",
    type=click.Choice(["process", "group", "commit"]),
    default="group",
    show_default=True,
    help="What a save survives: the death of processes; power loss, 200 ms later; power loss, at once.",
)
@click.option("--keep", is_flag=True, help="Adopt the state also after a clean stop.")
@click.option("--fresh", is_flag=True, help="Start with empty state also after a crash.")
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Where state lives.  [default: $DORA_STATE_DIR, else `state` beside the dataflow]",
)
@click.option(
    "--shutdown-grace",
    type=_SECONDS,
    default=5.0,
    show_default=True,
    help="Seconds that the operator may take to stop before it is killed.",
)
@click.option(
    "--immediate",
    multiple=True,
    metavar="OUTPUT",
    help="An output that leaves at once, not with the commit of its event. May be repeated.",
)
@click.option(
    "--standby",
    type=click.Choice(["fork", "process", "off"]),
    default="fork",
    show_default=True,
    help="What stands ready to take over: a forked spare, an interpreter of its own, nothing.",
)
@click.option(
    "--preload",
    multiple=True,
    metavar="MODULE",
    help="A module to import ahead of time: once for all forks, or in each spare. May be repeated.",
)
def run(
    operator: Path,
    shutdown_grace: float,
    immediate: tuple[str, ...],
    **options: Any,
) -> int:
    """Host an operator as a node of a dora dataflow.

    dora starts it; in the dataflow file, write

    \b
        path: dora-state
        args: run OPERATOR.py
    """
    _check_operator(operator)
    # Only now: these take a while to import, and an error should not have to wait for them.
    from .. import dora
    from ..runtime.policy import RestartPolicy

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    policy = RestartPolicy(**{each.name: options.pop(each.name) for each in fields(RestartPolicy)})
    code = dora.run(
        dora.RunOptions(
            operator=operator,
            restart=policy,
            shutdown_grace_s=shutdown_grace,
            immediate=frozenset(immediate),
            **options,
        )
    )
    dora.leave(code)
    return code


def _check_operator(path: Path) -> None:
    """Refuses what cannot be an operator's file, before anything is started."""
    if not path.exists():
        raise OperatorError(
            f"the operator file {path} does not exist; the path is relative to {Path.cwd()}"
        )
    if not path.is_file() or path.suffix != ".py":
        raise OperatorError(
            f"{path} is not an operator file; give the Python file that defines the class Operator"
        )
    if importlib.util.find_spec("dora") is None:
        raise OperatorError("dora is not installed; run `pip install 'dora-state[dora]'`")
