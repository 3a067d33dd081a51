"""The commands of `dora-state`, each imported when it is asked for: a host that dora restarts should start quickly."""

from __future__ import annotations

import importlib
from typing import Any

import click

from .failure import OutputGone

# In the order of the help: running, looking, changing, the files.
COMMANDS = (
    "run",
    "list",
    "get",
    "watch",
    "stats",
    "dead-letters",
    "reload",
    "put",
    "delete",
    "verify",
    "repair",
    "compact",
    "export",
    "import",
)
_TAKEN = {"list": "list_", "import": "import_"}  # names that mean something in Python


class Commands(click.Group):
    """Finds a command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputGone from error

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = _TAKEN.get(cmd_name, cmd_name.replace("-", "_"))
        command = getattr(importlib.import_module(f".{name}", __package__), name)
        assert isinstance(command, click.Command)
        return command


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dora-state", message="dora-state %(version)s")
def cli() -> None:
    """Crash-safe state for dora operators, and one shared store for all nodes of a dataflow."""
