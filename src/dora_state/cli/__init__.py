"""The command line.

Exit codes

    0    all went well
    1    it failed: no space, a conflict, an operator that crashed
    2    the input is wrong: the file, the option, the directory. Nothing was changed
    3    the key is not there
    4    the store is damaged
    5    in use: a running operator, or another process, has what the command needs for itself
    130  interrupted with Ctrl-C
    141  whoever read our output has gone

An error is one line that says what is wrong and, where we know it, one that says what to do. Our messages end with
the latter behind their last semicolon.

A command is a module of its name in this package with a click command of its name in it: COMMANDS in group.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence

import click

from ..errors import (
    CorruptionError,
    FormatError,
    LockTimeout,
    NotAStoreError,
    OperatorError,
    StateError,
    StoreInUse,
    StoreIOError,
)
from .failure import InUse, MissingKey, OutputGone
from .group import cli

# The first that fits.
_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (MissingKey, 3),
    (CorruptionError, 4),
    (InUse, 5),
    (StoreInUse, 5),
    (LockTimeout, 5),
    # What is wrong here is what was asked for.
    (FileNotFoundError, 2),
    (NotADirectoryError, 2),
    (IsADirectoryError, 2),
    (PermissionError, 2),
    (OperatorError, 2),
    (NotAStoreError, 2),
    (FormatError, 2),
    (ValueError, 2),
    (StateError, 1),
    (OSError, 1),
    (MemoryError, 1),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a key is text of any script, the terminal may not be
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(arguments, prog_name="dora-state", standalone_mode=False) or 0
        sys.stdout.flush()
        return code
    except click.exceptions.NoArgsIsHelpError as error:  # no command was given
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dora-state"
        return _fail(f"{error.format_message().rstrip('.')}; see `{command} --help`", 2)
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (OutputGone, BrokenPipeError):
        # Python would try to write the rest once more when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        code = next((code for kind, code in _CODES if isinstance(error, kind)), 0)
        if isinstance(error, StoreIOError) and error.errno in (errno.EACCES, errno.EPERM):
            code = 2  # as PermissionError
        if not code:
            raise
        return _fail(_sentence(error), code)


def _sentence(error: Exception) -> str:
    if isinstance(error, CorruptionError) and "repair" not in str(error):
        return f"{error}; stop the dataflow, then run `dora-state repair`"
    if isinstance(error, StoreIOError):
        return error.strerror or str(error)  # without the number of the error
    if isinstance(error, MemoryError):
        return "out of memory"
    if type(error).__module__ == "builtins" and isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    what, _, hint = message.rpartition("; ")
    print(f"error: {what or hint}", file=sys.stderr)
    if what:
        print(f"hint: {hint}", file=sys.stderr)
    return code
