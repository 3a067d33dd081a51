"""The buffer of events that wait for the operator."""

from __future__ import annotations

from dora_state.runtime import inputs
from dora_state.runtime.channel import unpack
from dora_state.runtime.inputs import InputBuffer, take_apart


def event(n: int, id: str = "in", type: str = "INPUT", value: bytes = b"") -> inputs.Event:
    return take_apart({"type": type, "id": id, "n": n, "value": value})


def numbers(buffer: InputBuffer) -> list[int]:
    found = []
    while (each := buffer.take()) is not None:
        found.append(unpack(each.packed)["n"])
    return found


def test_events_come_out_in_the_order_of_their_arrival():
    buffer = InputBuffer({"a": 100, "b": 100})
    for n in range(10):
        buffer.put(event(n, "ab"[n % 2]))
    assert len(buffer) == 10
    assert numbers(buffer) == list(range(10))
    assert buffer.dropped == {}


def test_a_full_input_drops_its_oldest_event_and_counts_it():
    buffer = InputBuffer({"fast": 2})
    for n in range(5):
        buffer.put(event(n, "fast"))
        buffer.put(event(10 + n, "slow"))
    assert len(buffer) == 7
    assert numbers(buffer) == [3, 10, 4, 11, 12, 13, 14]
    assert buffer.dropped == {"fast": 3}


def test_an_input_that_keeps_the_freshest_has_its_turn_beside_one_that_is_full():
    """As in dora. With a place at the end of the order it would be dropped anew before each of its turns."""
    buffer = InputBuffer({"full": 5, "fresh": 1})
    taken = []
    for n in range(120):
        buffer.put(event(n, "full"))
        buffer.put(event(n, "fresh"))
        if n % 4 == 3:  # a quarter of what comes
            each = buffer.take()
            taken.append((each.id, unpack(each.packed)["n"]))
    fresh = [n for id, n in taken if id == "fresh"]
    assert len(fresh) >= 4
    assert all(n % 4 == 3 for n in fresh), "each was the newest"
    assert [n for id, n in taken if id == "full"] == sorted(n for id, n in taken if id == "full")
    left = len(buffer)
    assert len(numbers(buffer)) == left
    assert sum(buffer.dropped.values()) == 2 * 120 - len(taken) - left


def test_what_was_dropped_for_its_size_leaves_no_turn_without_an_event(monkeypatch):
    monkeypatch.setattr(inputs, "QUEUE_BYTES", 1000)
    buffer = InputBuffer({"in": 100, "other": 100})
    for n in range(4):
        buffer.put(event(n, value=bytes(200)))
    buffer.put(event(10, "other"))
    buffer.put(event(4, value=bytes(5000)))  # drops four, and takes the place of one
    buffer.put(event(11, "other"))
    assert len(buffer) == 3
    assert numbers(buffer) == [4, 10, 11]
    buffer.put(event(12))
    assert buffer.drop_inputs() == 1
    assert len(buffer) == 0
    assert buffer.take() is None


def test_a_queue_size_of_one_keeps_the_freshest():
    buffer = InputBuffer({"in": 1})
    for n in range(5):
        buffer.put(event(n))
    assert numbers(buffer) == [4]


def test_an_input_without_a_queue_size_has_doras_default():
    buffer = InputBuffer()
    for n in range(25):
        buffer.put(event(n))
    assert numbers(buffer) == list(range(15, 25))


def test_bytes_are_bounded_too_but_the_newest_event_always_stays(monkeypatch):
    monkeypatch.setattr(inputs, "QUEUE_BYTES", 1000)
    buffer = InputBuffer({"in": 100})
    for n in range(4):
        buffer.put(event(n, value=bytes(400)))
    assert numbers(buffer) == [2, 3]
    buffer.put(event(5, value=bytes(5000)))
    assert numbers(buffer) == [5]


def test_what_is_no_input_is_never_dropped():
    buffer = InputBuffer({"in": 1})
    for n in range(5):
        buffer.put(event(n, type="INPUT_CLOSED"))
    buffer.put(event(5, type="STOP"))
    assert buffer.stop_seen
    assert numbers(buffer) == [0, 1, 2, 3, 4, 5]


def test_a_buffer_that_nobody_empties_does_not_grow():
    buffer = InputBuffer({"fast": 3, "slow": 3})
    for n in range(10_000):
        buffer.put(event(n, "slow" if n % 100 == 0 else "fast"))
        assert len(buffer._order) <= 6
    assert len(buffer) == 6
    assert numbers(buffer) == [9700, 9997, 9998, 9999, 9800, 9900]
    assert buffer.dropped == {"fast": 9897, "slow": 97}


def test_a_dropped_event_gives_its_memory_back():
    buffer = InputBuffer({"in": 1})
    first = event(0, value=bytes(1000))
    buffer.put(first)
    buffer.put(event(1))
    assert first.value is None
