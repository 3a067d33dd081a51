"""Typed state: attributes of an operator that are declared once and then saved and restored by themselves.

    class Operator:
        count: int = state(0)
        position = state(np.zeros(3))
        landmarks: dict[int, Any] = state({}, keyed=True)

A field is an ordinary attribute. At the end of a handler every field that has changed is saved, in the commit of
the event. A change in place (`self.position += 1`, `self.names.append(...)`) is found by comparing what the
value encodes to with what is on record; that costs an encoding per handler, and no mutation can hide from it.
Only two things are not encoded again: a constant (int, str, tuple of such, ...) that is still the same object, and
a field that was declared with in_place=False.

What is on record, in the private store beside the keys of save_state:

    key            value
    @              {"version": of the class, "fields": {name: is it keyed}}, as codec.py writes it
    @name          the value of a field, as codec.py writes it
    @name[key]     one entry of a keyed field: 8 bytes, little-endian: its place in the order of insertion; then its
                   value. `key` is the key's repr.

The order of a keyed field is kept because what an operator computes from a dict may depend on it, to the last bit
of a sum.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, overload

from dora_state import codec as default_codec
from dora_state.codec import Coded
from dora_state.dataclass_codec import DataclassCodec
from dora_state.errors import FieldError, StateVersionError
from dora_state.keyed import Keyed, key_of
from dora_state.operator import FIELDS_PREFIX as PREFIX
from dora_state.operator import VALUE_BYTES

log = logging.getLogger("dora_state.operator")

_PLACE = struct.Struct("<Q")
_NOTHING: Any = object()

_T = TypeVar("_T")
_Put = Callable[[str, "bytes | None"], object]


class Codec(Protocol):
    """Turns a value of one's own type into bytes and back. A module or a class with two static methods will do."""

    def encode(self, value: Any) -> bytes: ...
    def decode(self, data: bytes) -> Any: ...


@overload
def state(
    default: _T, *, keyed: bool = ..., codec: Codec | type | None = ..., in_place: bool = ...
) -> _T: ...
@overload
def state(*, keyed: bool = ..., codec: Codec | type | None = ..., in_place: bool = ...) -> Any: ...
def state(
    default: Any = _NOTHING,
    *,
    keyed: bool = False,
    codec: Codec | type | None = None,
    in_place: bool = True,
) -> Any:
    """Declare an attribute of an operator's class as part of its state: `count: int = state(0)`.

    It is restored after `__init__` and before `restore_state`, and saved with the event that changed it.

    Args:
        default: the first value; each operator gets a copy. Without one, set the attribute in `__init__`.
        keyed: the field is a mapping whose entries are saved one by one, so that a change of one entry costs
            one entry. Its keys are str, int, bytes or tuples of these.
        codec: how the value (of a keyed field: each value) becomes bytes: a dataclass, for its instances, or anything
            with `encode` and `decode`. By default msgpack, with numpy arrays as raw memory: None, bool, int, float,
            complex, str, bytes, bytearray, datetime, list, tuple, dict, set, frozenset, deque, numpy scalars.
        in_place: False promises that a value is only ever replaced, never changed where it is. It is then not
            compared after each event, which saves time if it is large.
    """
    return (KeyedField if keyed else Field)(default, _as_codec(codec), in_place)


def _as_codec(codec: Any) -> Codec | None:
    if isinstance(codec, type) and dataclasses.is_dataclass(codec):
        return DataclassCodec(codec)
    has_both = all(callable(getattr(codec, name, None)) for name in ("encode", "decode"))
    if codec is not None and not has_both:
        raise TypeError(
            f"a codec has encode and decode, or is a dataclass; {codec!r:.80} is neither"
        )
    return codec  # type: ignore[no-any-return]


class Field:
    """What `state` makes: a default for the attribute, and how its values are kept."""

    keyed = False

    def __init__(self, default: Any, codec: Codec | None, in_place: bool) -> None:
        self.default = default
        self.codec = codec
        self.in_place = in_place
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    # Once it has a value the instance's own attribute hides this: reading a field costs nothing extra.
    def __get__(self, operator: Any, owner: type | None = None) -> Any:
        if operator is None:
            return self
        value = operator.__dict__[self.name] = self.first()
        return value

    def first(self) -> Any:
        if self.default is _NOTHING:
            raise AttributeError(
                f"the field {self.name} has no value yet; set it in __init__ or declare a default"
            )
        return copy.deepcopy(self.default)

    def tracker(self) -> Tracker:
        return Tracker(self)

    def adopt(self, value: Any) -> Any:
        """The value as the attribute holds it."""
        return value

    # Encoding; whatever goes wrong is told with the field's name.

    def encode(self, value: Any, key: str) -> bytes:
        try:
            if self.codec is not None:
                value = Coded(bytes(self.codec.encode(value)))
            data = default_codec.encode(value)
        except Exception as error:
            raise FieldError(
                f"the field {key[1:]} cannot be saved: {_sentence(error)}; "
                "use a type that state() knows, or declare the field with a codec",
                self.name,
            ) from error
        if len(data) > VALUE_BYTES:
            raise FieldError(
                f"the field {key[1:]} cannot be saved: it has {len(data)} bytes, the limit is {VALUE_BYTES}; "
                "keep less in it, or declare it with keyed=True, so that each entry counts by itself",
                self.name,
            )
        return data

    def decode(self, value: Any, *, migrates: bool) -> Any:
        """What a codec has made, as a value again. A migration gets what it cannot know as it is."""
        coded = type(value) is Coded
        try:
            if coded and self.codec is not None:
                return self.codec.decode(value.data)
            if coded == (self.codec is not None) or migrates:
                return value.data if coded else value
            raise TypeError(f"it was saved with{'' if coded else 'out'} a codec")
        except Exception as error:
            raise FieldError(
                f"the field {self.name} cannot be restored: {_sentence(error)}; "
                "let its codec read what an older version has saved, or raise state_version and migrate",
                self.name,
            ) from error


class KeyedField(Field):
    keyed = True

    def __get__(self, operator: Any, owner: type | None = None) -> Any:
        if operator is None:
            return self
        value = operator.__dict__.get(self.name, _NOTHING)
        if not isinstance(value, Keyed):  # not there, or put there by way of __dict__
            value = self.first() if value is _NOTHING else self.adopt(value)
            operator.__dict__[self.name] = value
        return value

    def __set__(self, operator: Any, value: Any) -> None:
        # One that another field has would tell its changes to that field only: each has its own.
        if value is not operator.__dict__.get(self.name):
            operator.__dict__[self.name] = self.adopt(
                dict(value) if isinstance(value, Keyed) else value
            )

    def first(self) -> Any:
        return self.adopt({} if self.default is _NOTHING else copy.deepcopy(self.default))

    def tracker(self) -> Tracker:
        return KeyedTracker(self)

    def adopt(self, value: Any) -> Keyed[Any, Any]:
        if isinstance(value, Keyed):
            return value
        if not isinstance(value, Mapping):
            raise FieldError(
                f"the field {self.name} is keyed and was given a {type(value).__name__}; give it a mapping",
                self.name,
            )
        return Keyed(value)


class Tracker:
    """What is on record of one field of one operator."""

    def __init__(self, field: Field) -> None:
        self.field = field
        self.key = PREFIX + field.name
        self._data: bytes | None = None
        self._value: Any = _NOTHING  # what it was made of, if that cannot change in place

    def load(self, state: dict[str, bytes]) -> None:
        """Take out of `state` what is on record of this field."""
        self._data = state.pop(self.key, None)

    def inherit(self, other: Any) -> None:
        """Take over from the tracker of the same field in an older class."""
        self._data = other._data

    def keys(self) -> list[str]:
        """What is on record."""
        return [] if self._data is None else [self.key]

    def accept(self, value: Any) -> None:
        """Take note that this value is what is on record."""
        constant = not self.field.in_place or default_codec.is_constant(value)
        self._value = value if constant else _NOTHING

    def save(self, value: Any, put: _Put) -> None:
        """Put what has changed since the last call."""
        if value is self._value:
            return
        data = self.field.encode(value, self.key)
        if data != self._data:
            put(self.key, data)
            self._data = data
        self.accept(value)


class KeyedTracker(Tracker):
    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self._entries: dict[Any, tuple[int, bytes]] = {}  # place and encoded value
        self._next_place = 1

    def load(self, state: dict[str, bytes]) -> None:
        for name in [name for name in state if name.startswith(self.key + "[")]:
            data = state.pop(name)
            place = _PLACE.unpack_from(data)[0]
            self._entries[key_of(name[len(self.key) + 1 : -1])] = (place, data[_PLACE.size :])
            self._next_place = max(self._next_place, place + 1)

    def inherit(self, other: Any) -> None:
        self._entries, self._next_place = other._entries, other._next_place

    def keys(self) -> list[str]:
        return [f"{self.key}[{key!r}]" for key in self._entries]

    def accept(self, value: Any) -> None:
        if value.keys() == self._entries.keys():  # else it came from another kind of field
            value._touched, value._removed = {}, set()
            self._value = value

    def save(self, value: Any, put: _Put) -> None:
        if value is not self._value:
            self._save_all(value, put)
            return
        touched, value._touched = value._touched, {}
        removed, value._removed = value._removed, set()
        for key in touched:
            known = self._entries.get(key)
            if key not in value._entries:
                self._forget(key, put)
            elif known is None or key in removed:
                self._save_entry(key, value._entries[key], self._take_place(), put)
            else:
                self._save_entry(key, value._entries[key], known[0], put)
        if self.field.in_place:
            for key in value._mutable:
                if key not in touched:
                    self._save_entry(key, value._entries[key], self._entries[key][0], put)

    def _save_all(self, value: Any, put: _Put) -> None:
        """Another mapping than before: compare every entry. Places are kept as long as the order is."""
        value._touched, value._removed = {}, set()
        for key in [key for key in self._entries if key not in value._entries]:
            self._forget(key, put)
        last = 0
        for key, each in value._entries.items():
            known = self._entries.get(key)
            last = known[0] if known is not None and known[0] > last else self._take_place()
            self._save_entry(key, each, last, put)
        self._value = value

    def _save_entry(self, key: Any, value: Any, place: int, put: _Put) -> None:
        name = f"{self.key}[{key!r}]"
        data = self.field.encode(value, name)
        if self._entries.get(key) != (place, data):
            put(name, _PLACE.pack(place) + data)
            self._entries[key] = (place, data)

    def _forget(self, key: Any, put: _Put) -> None:
        if self._entries.pop(key, None) is not None:
            put(f"{self.key}[{key!r}]", None)

    def _take_place(self) -> int:
        place, self._next_place = self._next_place, self._next_place + 1
        return place


class Fields:
    """The fields of one operator object, for the runtime: `restore` once, then `save` after each handler."""

    def __init__(self, operator: Any, fields: dict[str, Field]) -> None:
        self._operator = operator
        self._fields = fields
        self._trackers = {name: field.tracker() for name, field in fields.items()}
        self._obsolete: list[str] = []  # keys of fields that are gone
        self._meta: bytes | None = None
        kinds = {name: field.keyed for name, field in fields.items()}
        self._wanted_meta = default_codec.encode({"version": _version(operator), "fields": kinds})

    @classmethod
    def of(cls, operator: Any) -> Fields | None:
        """Those of this operator; None if its class declares none."""
        fields = declared(type(operator))
        if not fields:
            return None
        if not hasattr(operator, "__dict__"):
            raise FieldError(
                f"{type(operator).__name__} has __slots__ and cannot hold fields; remove __slots__",
                next(iter(fields)),
            )
        return cls(operator, fields)

    def restore(self, state: Mapping[str, bytes]) -> dict[str, bytes]:
        """Set the operator's fields to what was saved; returns the keys that are not of fields."""
        rest = {key: data for key, data in state.items() if not key.startswith(PREFIX)}
        saved = {key: data for key, data in state.items() if key.startswith(PREFIX)}
        if PREFIX not in saved:
            return rest
        values, version = unpack(saved)
        migrates = version != _version(self._operator)
        for name, value in values.items():
            if (field := self._fields.get(name)) is not None:
                values[name] = _each(field, value, migrates=migrates)
        values = self._migrate(values, version)
        self._meta = saved.pop(PREFIX)
        for name, tracker in self._trackers.items():
            tracker.load(saved)
            if name in values:
                value = self._operator.__dict__[name] = self._fields[name].adopt(values[name])
                if not migrates:
                    tracker.accept(value)
        self._obsolete = list(saved)
        return rest

    def take_over(self, before: Fields) -> None:
        """After a reload: the operator has the `__dict__` of one of an older class. Raises as `restore` does, and has
        then changed nothing.
        """
        old = before._operator
        values = {name: getattr(old, name) for name in before._fields}
        if _version(old) != _version(self._operator):
            values = _copied(values)  # a migration may change them in place, and then fail
        for name, field in before._fields.items():
            stays = _version(old) == _version(self._operator) and name in self._fields
            if field.keyed and not (stays and self._fields[name].keyed):
                values[name] = dict(values[name])  # as after a restart
        values = {
            name: self._fields[name].adopt(value)
            for name, value in self._migrate(values, _version(old)).items()
            if name in self._fields
        }
        for name in before._fields:
            self._operator.__dict__.pop(name, None)
        self._operator.__dict__.update(values)
        self._meta = before._meta
        for name, tracker in before._trackers.items():
            mine = self._trackers.get(name)
            if type(mine) is type(tracker):
                mine.inherit(tracker)
            else:
                self._obsolete += tracker.keys()

    def save(self, put: _Put) -> None:
        """Put every change since the last call, as key and value; None as value deletes."""
        for name, tracker in self._trackers.items():
            try:
                value = getattr(self._operator, name)
            except AttributeError as error:
                raise FieldError(str(error), name) from error
            if isinstance(value, Field):
                raise FieldError(
                    f"the field {name} holds its own declaration; "
                    "do not make a class with state() a dataclass or an attrs class",
                    name,
                )
            tracker.save(value, put)
        for key in self._obsolete:
            put(key, None)
        self._obsolete = []
        if self._meta != self._wanted_meta:
            put(PREFIX, self._wanted_meta)
            self._meta = self._wanted_meta

    def _migrate(self, values: dict[str, Any], version: int) -> dict[str, Any]:
        """What was saved by an older version of the class, as this one wants it."""
        wanted = _version(self._operator)
        if version == wanted:
            for name in values:
                if name not in self._fields:
                    raise FieldError(
                        f"the field {name} was saved, but the class does not declare it any more; "
                        "declare it, or raise state_version and leave it out in migrate_state",
                        name,
                    )
            return values
        if version > wanted:
            raise StateVersionError(
                f"the state was saved by version {version} of the class, and this is version {wanted}; "
                "use the newer class, or start with --fresh"
            )
        migrate = getattr(self._operator, "migrate_state", None)
        if migrate is None:
            raise StateVersionError(
                f"the state was saved by version {version} of the class, and this is version {wanted}; "
                "define migrate_state(self, state, version), which changes the dict of fields in place"
            )
        returned = migrate(values, version)
        values = values if returned is None else returned
        if not isinstance(values, dict):
            raise StateVersionError(
                f"migrate_state returned a {type(returned).__name__}; "
                "return a dict of the fields, or change the one it was given"
            )
        if dropped := sorted(values.keys() - self._fields.keys()):
            log.info("fields that version %d does not have are dropped: %s", wanted, dropped)
        return values


def declared(cls: type) -> dict[str, Field]:
    """The fields of a class and its bases, in the order of their declaration."""
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__):
        for name, member in vars(base).items():
            if isinstance(member, Field):
                found[name] = member
            else:
                found.pop(name, None)  # a derived class has made something else of it
    return found


def unpack(saved: Mapping[str, bytes]) -> tuple[dict[str, Any], int]:
    """The fields in what is on record, and the version that saved them. For whoever has no class at hand.

    A value that a codec has made is a Coded. `saved` may hold other keys, too.
    """
    key = PREFIX
    try:
        meta = default_codec.decode(saved[PREFIX])
        values: dict[str, Any] = {}
        for name, keyed in meta["fields"].items():
            key = PREFIX + name
            values[name] = _entries(saved, key) if keyed else default_codec.decode(saved[key])
        return values, meta["version"]
    except Exception as error:
        raise FieldError(
            f"what is on record under {key!r} cannot be read: {_sentence(error)}; start with --fresh",
            key[1:],
        ) from error


def _entries(saved: Mapping[str, bytes], prefix: str) -> dict[Any, Any]:
    found = []
    for name, data in saved.items():
        if name.startswith(prefix + "["):
            value = default_codec.decode(data[_PLACE.size :])
            found.append((_PLACE.unpack_from(data)[0], key_of(name[len(prefix) + 1 : -1]), value))
    found.sort(key=lambda entry: entry[0])
    return {key: value for _, key, value in found}


def _each(field: Field, value: Any, *, migrates: bool) -> Any:
    """A saved value through the field's codec."""
    if field.keyed and isinstance(value, dict):
        return {key: field.decode(each, migrates=migrates) for key, each in value.items()}
    return field.decode(value, migrates=migrates)


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """What is shared between values is shared between their copies."""
    memo: dict[int, Any] = {}
    copies = {}
    for name, value in values.items():
        try:
            copies[name] = copy.deepcopy(value, memo)
        except Exception as error:
            raise FieldError(
                f"the field {name} cannot be copied for migrate_state: {_sentence(error)}; "
                "restart the operator instead, which reads it from the store",
                name,
            ) from error
    return copies


def _version(operator: Any) -> int:
    version = getattr(operator, "state_version", 1)
    if type(version) is not int or version < 1:
        raise StateVersionError(f"state_version is {version!r:.80}; use an int from 1 on")
    return version


def _sentence(error: Exception) -> str:
    return str(error) or type(error).__name__
