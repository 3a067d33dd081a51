"""Instances of a dataclass as values of a field: `state(Pose(0, 0), codec=Pose)`.

Saved is a dict of the dataclass's fields, as codec.py writes it. Restoring sets them without calling `__init__`, so the
new instance is what the old one was, whatever `__post_init__` computes. A field that was added to the class since
takes its default.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from dora_state import codec


class DataclassCodec:
    """The codec for exactly one dataclass; no subclasses, whose fields it would not know."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._fields = dataclasses.fields(cls)

    def encode(self, value: Any) -> bytes:
        if type(value) is not self._cls:
            raise TypeError(f"it is no {self._cls.__qualname__}, but a {type(value).__qualname__}")
        return codec.encode({each.name: getattr(value, each.name) for each in self._fields})

    def decode(self, data: bytes) -> Any:
        saved = codec.decode(data)
        value: Any = object.__new__(self._cls)
        for each in self._fields:
            content = saved.pop(each.name) if each.name in saved else _default(each)
            object.__setattr__(value, each.name, content)  # also of a frozen one
        if saved:
            raise ValueError(
                f"{self._cls.__qualname__} has no field {next(iter(saved))!r} any more"
            )
        return value


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise ValueError(f"its field {field.name!r} is new, and has no default")
