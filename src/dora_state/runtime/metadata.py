"""What dora takes as the metadata of an output: a dict of text to numbers, texts, and lists of one of them.

dora makes text of what it has no type for, and refuses the rest when `send_output` is called. The runtime
calls that after the commit, when the operator can do nothing about it any more: so it is refused in the handler.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_INTS = range(-(1 << 63), 1 << 63)
# What the first item of a list is, and what all others may be then.
_LISTS = ((str, (str,)), (float, (float, int)), (int, (int,)))


def check(output_id: str, metadata: Any) -> None:
    """Raises TypeError or OverflowError, as dora does."""
    if not isinstance(metadata, dict):
        raise TypeError(
            f"send_output({output_id!r:.80}): metadata is a {type(metadata).__name__}; use a dict"
        )
    for key, content in metadata.items():
        if not isinstance(key, str):
            raise TypeError(
                f"send_output({output_id!r:.80}): the metadata has the key {key!r:.80};"
                " use texts as keys"
            )
        if isinstance(content, int):
            _check_ints(output_id, key, (content,))
        elif isinstance(content, list) and content:
            _check_list(output_id, key, content)


def _check_list(output_id: str, key: str, items: list[Any]) -> None:
    kinds = next((kinds for first, kinds in _LISTS if isinstance(items[0], first)), None)
    if kinds is None or isinstance(items[0], bool):
        return  # becomes text, or what numpy has for a number
    for item in items:
        if not isinstance(item, kinds) and not hasattr(item, "item"):
            raise TypeError(
                f"send_output({output_id!r:.80}): the metadata {key!r:.80} is a list of"
                f" {type(items[0]).__name__} and {type(item).__name__}; use items of one type"
            )
    if kinds == (int,):
        _check_ints(output_id, key, (item for item in items if isinstance(item, int)))


def _check_ints(output_id: str, key: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        if number not in _INTS:
            raise OverflowError(
                f"send_output({output_id!r:.80}): the metadata {key!r:.80} has a number beyond"
                " 64 bits; send it as text"
            )
