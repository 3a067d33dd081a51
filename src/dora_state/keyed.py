"""The value of a keyed field: a mapping whose entries are saved one by one (typed_state.py)."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, TypeVar

from dora_state import codec

_K = TypeVar("_K")
_V = TypeVar("_V")


class Keyed(MutableMapping[_K, _V]):
    """The value of a keyed field: a dict that notes which entries were set or deleted.

    Assigning a dict to the field copies it into one of these. It is no subclass of dict, because C code may
    change one of those without asking.
    """

    def __init__(self, entries: Mapping[_K, _V] | None = None) -> None:
        self._entries: dict[_K, _V] = {}
        # Set or deleted since the last handler, in the order in which they were last inserted.
        self._touched: dict[_K, None] = {}
        self._removed: set[_K] = set()  # among them: those that were deleted, perhaps to come back
        self._mutable: dict[_K, None] = {}  # entries whose value can change in place
        if entries is not None:
            self.update(entries)

    def __getitem__(self, key: _K) -> _V:
        return self._entries[key]

    def __setitem__(self, key: _K, value: _V) -> None:
        key = plain_key(key)
        if key not in self._entries:
            self._touched.pop(key, None)
        self._entries[key] = value
        self._touched[key] = None
        if codec.is_constant(value):
            self._mutable.pop(key, None)
        else:
            self._mutable[key] = None

    def __delitem__(self, key: _K) -> None:
        key = plain_key(key)
        del self._entries[key]
        self._touched[key] = None
        self._removed.add(key)
        self._mutable.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[_K]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __ior__(self, other: Mapping[_K, _V]) -> Keyed[_K, _V]:
        self.update(other)
        return self

    def __repr__(self) -> str:
        return repr(self._entries)

    def __copy__(self) -> Keyed[_K, _V]:
        return Keyed(self._entries)

    def __deepcopy__(self, memo: dict[int, Any]) -> Keyed[_K, _V]:
        return Keyed(copy.deepcopy(self._entries, memo))

    def copy(self) -> dict[_K, _V]:
        """The entries as a plain dict."""
        return dict(self._entries)


def key_of(text: str) -> Any:
    """The key whose repr this is."""
    if text[0] in "'\"" and "\\" not in text:  # much faster than the parser
        return text[1:-1]
    return ast.literal_eval(text)


def plain_key(key: Any) -> Any:
    """A key as one of the types whose repr says which key it is. numpy's integers become int."""
    kind = type(key)
    if kind is str or kind is int or kind is bytes:
        return key
    if kind is tuple:
        return tuple(map(plain_key, key))
    if kind is not bool and hasattr(key, "__index__"):
        return int(key)
    raise TypeError(
        f"a key of a keyed field is a str, int, bytes or a tuple of these, not a {kind.__name__}: {key!r:.80}"
    )
