"""What is told of an exception: to the host in a message, and to the successor in the lifeline's note.

The operator's exceptions are not to be trusted with it: their `__str__` may fail, their text may be none that UTF-8
can carry.
"""

from __future__ import annotations

import traceback

from dora_state.runtime import channel


def describe(error: BaseException) -> dict[str, str]:
    """An exception in one line, and with its traceback."""
    return {
        "error": _sendable(_summary(error)),
        "traceback": _sendable("".join(traceback.format_exception(error))),
    }


def leave_note(note: memoryview | None, reason: str, detail: str) -> None:
    """What a successor is told that the lifeline starts. `note` is the lifeline's."""
    if note is not None:
        words = channel.pack_note(reason, detail)
        note[1 : len(words)] = words[1:]
        note[0] = words[0]  # last: it says that there is one


def _summary(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:  # the operator's own __str__; its failure is not the one to be told
        text = "<its __str__ failed>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _sendable(text: str) -> str:
    """Text as UTF-8 can carry it: a file name that is none has surrogates in it."""
    return text.encode(errors="backslashreplace").decode()
