"""Dead letters: events that the operator has failed on too often, set aside so that it can go on.

They are kept in the operator's private store, in the RUNTIME keyspace:

    "dead-letters"        the list, without the contents: a msgpack map
                          {buried, dropped, bytes, letters: [letter, ...]}, oldest first
    "dead-letter/<n>"     the content of the event with number n, 16 hex digits: a msgpack array
                          [event without its value, value, traceback]

Burying an event and advancing the number of the input is one commit, made by the host behind the
fence. At most LETTERS of them are kept, and LETTERS_BYTES; beyond that the oldest are dropped and
counted. One that is larger than that alone is listed without its content.

To replay a letter is to mark it, which survives the host, and to hand it out as a new event. The
commit of that event also deletes the letter's content, in the worker: so it is handled exactly once,
whoever dies when. A mark whose content is gone is therefore one that was replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgpack

from dora_state._core import RUNTIME, Store
from dora_state.errors import FormatError
from dora_state.runtime import channel, step, value
from dora_state.runtime.handle import Worker
from dora_state.runtime.inputs import Event
from dora_state.runtime.step import Step

LIST_KEY = "dead-letters"
LETTERS = 100
LETTERS_BYTES = 64 << 20


@dataclass(frozen=True)
class Letter:
    """What the list says about one."""

    number: int  # of the event, as handed out the last time
    input_id: str | None
    type: str  # of the event
    reason: str  # of the last attempt's end
    attempts: int
    time: float  # Unix time
    size_bytes: int
    has_content: bool = True
    replay: bool = False  # it waits to be handed out again

    @property
    def is_stop(self) -> bool:
        return self.type == "STOP"


@dataclass(frozen=True)
class Letters:
    """The list, oldest first. `buried` and `dropped` count since the store was made."""

    letters: tuple[Letter, ...] = ()
    buried: int = 0
    dropped: int = 0

    def find(self, number: int) -> Letter | None:
        return next((letter for letter in self.letters if letter.number == number), None)

    def counts(self) -> dict[str, int]:
        """For the status."""
        return {"kept": len(self.letters), "buried": self.buried, "dropped": self.dropped}

    def pack(self) -> bytes:
        record = {
            "buried": self.buried,
            "dropped": self.dropped,
            "letters": [asdict(letter) for letter in self.letters],
        }
        return msgpack.packb(record)  # type: ignore[no-any-return]


def read(store: Store) -> Letters:
    """The list. Letters whose replay is over are not in it."""
    found = store._get(RUNTIME, LIST_KEY)
    if found is None:
        return Letters()
    record = msgpack.unpackb(found[0])
    letters = tuple(Letter(**fields) for fields in record["letters"])
    letters = tuple(each for each in letters if not each.replay or _is_there(store, each.number))
    return Letters(letters, record["buried"], record["dropped"])


def _is_there(store: Store, number: int) -> bool:
    return store._get(RUNTIME, step.letter_key(number)) is not None


def bury(store: Store, event: Event, attempts: int, reason: str, trace: str, done: Step) -> Letter:
    """Set an event aside and advance the input's number past it: one commit."""
    content = _pack(event, trace)
    letter = Letter(
        number=event.number,
        input_id=channel.unpack(event.packed).get("id"),
        type=event.type,
        reason=reason,
        attempts=attempts,
        time=time.time(),
        size_bytes=event.size_bytes,
        has_content=event.size_bytes <= LETTERS_BYTES,
    )
    known = read(store)
    kept = [each for each in known.letters if each.number != event.letter]
    gone = _make_room(kept, letter)
    batch = store._batch()
    for number in gone:
        batch.delete(step.letter_key(number), RUNTIME)
    if event.letter:
        batch.delete(step.letter_key(event.letter), RUNTIME)
    if letter.has_content:
        batch.put(step.letter_key(letter.number), content, RUNTIME)
    letters = Letters((*kept, letter), known.buried + 1, known.dropped + len(gone))
    batch.put(LIST_KEY, letters.pack(), RUNTIME)
    batch.put(step.KEY, done.pack(), RUNTIME)
    batch.commit()
    return letter


def _make_room(kept: list[Letter], new: Letter) -> list[int]:
    """Take letters out of the list, oldest first, those that wait for their replay last."""
    gone = []
    while len(kept) >= LETTERS or _bytes(kept) + _bytes([new]) > LETTERS_BYTES:
        if not kept:
            break
        oldest = next((each for each in kept if not each.replay), kept[0])
        kept.remove(oldest)
        gone.append(oldest.number)
    return gone


def _bytes(letters: list[Letter]) -> int:
    return sum(each.size_bytes for each in letters if each.has_content)


def mark(store: Store, numbers: set[int]) -> list[Event]:
    """Mark letters for their replay, in one commit; returns them as new events."""
    known = read(store)
    letters = [
        replace(each, replay=each.replay or each.number in numbers) for each in known.letters
    ]
    _write_list(store, replace(known, letters=tuple(letters)))
    return [_event(store, number) for number in sorted(numbers)]


def to_replay(store: Store) -> list[Event]:
    """Those that are marked, for a host that starts."""
    return [_event(store, each.number) for each in read(store).letters if each.replay]


def drop(store: Store, numbers: set[int]) -> None:
    """Forget letters, in one commit."""
    known = read(store)
    batch = store._batch()
    for number in numbers:
        batch.delete(step.letter_key(number), RUNTIME)
    letters = tuple(each for each in known.letters if each.number not in numbers)
    batch.put(LIST_KEY, replace(known, letters=letters).pack(), RUNTIME)
    batch.commit()


def tidy(store: Store) -> Letters:
    """Take what has been replayed out of the list on disk, too."""
    letters = read(store)
    _write_list(store, letters)
    return letters


def _write_list(store: Store, letters: Letters) -> None:
    batch = store._batch()
    batch.put(LIST_KEY, letters.pack(), RUNTIME)
    batch.commit()


@dataclass(frozen=True)
class Content:
    """What was in a letter: the event as the operator got it, and the last attempt's traceback."""

    event: dict[str, Any]
    traceback: str


def content(store: Store, number: int) -> Content | None:
    """None if it is not there. Needs pyarrow if the value is an Arrow array."""
    found = store._get(RUNTIME, step.letter_key(number))
    if found is None:
        return None
    packed, packed_value, trace = _unpack(store, found[0])
    event = channel.unpack(packed)
    if packed_value is not None:
        event["value"] = value.unpack_value(packed_value)
    return Content(event, trace)


def _event(store: Store, number: int) -> Event:
    """A letter as a new event. Its id is not told to the input's buffer, which would bound it."""
    found = store._get(RUNTIME, step.letter_key(number))
    assert found is not None
    packed, packed_value, _ = _unpack(store, found[0])
    encoded = value.encode_again(packed_value) if packed_value is not None else None
    size = len(packed) + (encoded.size_bytes if encoded is not None else 0)
    kind = str(channel.unpack(packed).get("type", ""))
    return Event(kind, None, packed, encoded, size, letter=number)


def _pack(event: Event, trace: str) -> bytes:
    packed_value = value.pack_value(event.value) if event.value is not None else None
    return msgpack.packb([event.packed, packed_value, trace])  # type: ignore[no-any-return]


def _unpack(store: Store, data: bytes) -> tuple[bytes, Any, str]:
    try:
        packed, packed_value, trace = msgpack.unpackb(data)
    except (ValueError, TypeError) as error:
        raise FormatError(
            f"{store.path}: a dead letter has an unknown layout; it was written by another version "
            "of dora-state: use that one, or drop the letter"
        ) from error
    return packed, packed_value, trace


class LetterBox:
    """The dead letters of a running host, which is the only one to change them meanwhile."""

    def __init__(self) -> None:
        self._store: Store | None = None
        self._known = Letters()
        self.on_over: Callable[[str], None] | None = None
        """Told of each that was handed out again, when it is over: see Event.over."""

    def open(self, store: Store) -> list[Event]:
        """Returns the events that are to be handed out again."""
        self._store = store
        self._known = read(store)
        return self._attend(to_replay(store))

    def _attend(self, events: list[Event]) -> list[Event]:
        for each in events:
            each.on_over = self.on_over
        return events

    def counts(self) -> dict[str, int]:
        return self._known.counts()

    def bury(self, event: Event, attempts: int, dead: Worker) -> Letter:
        assert self._store is not None
        trace = dead.failure["traceback"] if dead.failure is not None else ""
        done = Step(event.number, dead.incarnation)
        letter = bury(self._store, event, attempts, dead.describe_end(), trace, done)
        self._known = read(self._store)
        return letter

    def tidy(self) -> None:
        """A letter was replayed, and its content is gone with the commit."""
        assert self._store is not None
        self._known = tidy(self._store)

    def replay(self, numbers: list[int]) -> list[Event]:
        assert self._store is not None
        check(self._known, numbers)
        events = mark(self._store, set(numbers))
        self._known = read(self._store)
        return self._attend(events)

    def drop(self, numbers: list[int]) -> None:
        assert self._store is not None
        check(self._known, numbers, replays=False)
        drop(self._store, set(numbers))
        self._known = read(self._store)


def check(known: Letters, numbers: list[int], *, replays: bool = True) -> None:
    """Refuse, before anything is done, numbers for which nothing can be done."""
    for number in numbers:
        letter = known.find(number)
        if letter is None:
            raise LookupError(f"there is no dead letter {number}; list them")
        if letter.replay:
            raise ValueError(f"dead letter {number} waits for its replay already; wait for its end")
        if replays and letter.is_stop:
            raise ValueError(
                f"dead letter {number} is the STOP of a run that is over, and would end the next one;"
                " drop the letter"
            )
        if replays and not letter.has_content:
            raise ValueError(
                f"the event of dead letter {number} was larger than {LETTERS_BYTES >> 20} MiB and not"
                " kept; drop the letter"
            )
