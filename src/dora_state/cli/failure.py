"""What can be wrong at the command line alone; the exit codes are in __init__.py."""

from __future__ import annotations

from ..errors import StateError


class MissingKey(StateError):
    """The key is not in the store."""


class OutputGone(Exception):
    """Whoever read our output does not any more. Not an OSError: click would make its own of that."""


class InUse(StateError):
    """A running operator has what the command needs for itself."""
