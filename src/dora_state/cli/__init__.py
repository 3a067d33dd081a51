"""The command line.

Exit codes: 0 all went well; 1 it failed; 2 the input is wrong, and nothing was changed.

An error is one line that says what is wrong and, where we know it, one that says what to do. Our messages end with
the latter behind their last semicolon.

A command is a module of its name in this package with a click command of its name in it: COMMANDS in group.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ..errors import FormatError, NotAStoreError, OperatorError, StateError
from .group import cli

# What is wrong here is what was asked for: the file, the option, the directory.
_INPUT_ERRORS = (OperatorError, NotAStoreError, FormatError, ValueError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        return cli.main(arguments, prog_name="dora-state", standalone_mode=False) or 0
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dora-state"
        return _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
    except click.Abort:
        return 130
    except _INPUT_ERRORS as error:
        return _fail(str(error), 2)
    except (StateError, OSError) as error:
        return _fail(str(error), 1)


def _fail(message: str, code: int) -> int:
    what, _, hint = message.rpartition("; ")
    print(f"error: {what or hint}", file=sys.stderr)
    if what:
        print(f"hint: {hint}", file=sys.stderr)
    return code
