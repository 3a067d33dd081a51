"""The mapping methods of Store. What the engine promises is tested in tests/store and tests/c."""

from __future__ import annotations

import inspect
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dora_state import Entry, Store, _core
from dora_state.errors import Conflict, StoreClosed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


def test_it_is_a_mapping(store):
    store["a"] = b"1"
    store.update({"b": b"2", "c": b""}, d=b"4")
    assert dict(store) == {"a": b"1", "b": b"2", "c": b"", "d": b"4"}
    assert store == {"a": b"1", "b": b"2", "c": b"", "d": b"4"}
    assert (sorted(store.keys()), sorted(store.values())) == (
        ["a", "b", "c", "d"],
        [b"", b"1", b"2", b"4"],
    )
    assert store.snapshot() == dict(store)
    assert ("a", b"1") in store.items()
    assert ("a", b"2") not in store.items()
    assert b"4" in store.values()
    assert len(store) == len(store.items()) == 4
    assert "c" in store
    assert "e" not in store


@pytest.mark.parametrize("number", [None, 1.0, "1", -1, 2**64])
def test_a_sequence_is_an_int_of_64_bits(store, number):
    before = store.put("key", b"value")
    expected = ValueError if isinstance(number, int) else TypeError
    batch = store.batch()
    calls = [
        lambda: store.compare_and_put("key", b"", expected=number),
        lambda: batch.expect("key", number),
        lambda: store.wait("key", after=number, timeout=0),
        lambda: store.changes(after=number),
        lambda: store.fence(number),
        lambda: Store(store.path, incarnation=number),
    ]
    if number is not None:  # in a batch: whatever is there
        calls.append(lambda: batch.put("key", b"", expected=number))
        calls.append(lambda: batch.delete("key", expected=number))
    for call in calls:
        with pytest.raises(expected, match=r"(expected|sequence|after|incarnation) is a"):
            call()
    assert len(batch) == 0
    assert store.entry("key") == (b"value", before)


def test_a_read_only_handle_without_a_writer_shows_one_point(tmp_path):
    path = tmp_path / "store"
    with Store(path) as writer:
        sequence = writer.put("key", b"before")
    (path / "control").unlink()  # as after a reboot
    with Store(path, read_only=True) as early, Store(path) as writer:
        writer.put("key", b"after")
        assert early["key"] == b"before"
        assert early.wait("key", after=sequence, timeout=0.1) is None
        with Store(path, read_only=True) as late:
            assert late["key"] == b"after"
            writer.put("key", b"later")
            assert late["key"] == b"later"


def test_the_fast_methods_are_the_engines_own():
    for name in (
        "put",
        "get",
        "delete",
        "view",
        "__getitem__",
        "__setitem__",
        "__contains__",
        "__len__",
    ):
        assert inspect.getattr_static(Store, name) is inspect.getattr_static(_core.Store, name)


def test_a_path_may_be_a_str_or_a_path_and_shows_in_the_repr(tmp_path):
    with Store(str(tmp_path / "a")) as one, Store(tmp_path / "b", durability="commit") as other:
        assert repr(one) == f"Store({str(tmp_path / 'a')!r}, durability='process')"
        assert repr(other) == f"Store({os.fspath(tmp_path / 'b')!r}, durability='commit')"
    assert repr(one).endswith("closed)")


def test_a_missing_key_is_a_keyerror_or_the_default(store):
    for call in (store.__getitem__, store.delete, store.pop, store.entry):
        with pytest.raises(KeyError, match="none"):
            call("none")
    assert store.get("none") is None
    assert store.get("none", 7) == store.pop("none", 7) == 7
    with pytest.raises(KeyError):
        store.popitem()


def test_pop_and_popitem_remove_what_they_return(store):
    store.update(a=b"1", b=b"2")
    assert store.pop("a") == b"1"
    assert store.popitem() == ("b", b"2")
    assert not len(store)


def test_setdefault_puts_only_what_is_missing(store):
    assert store.setdefault("a", b"1") == b"1"
    assert store.setdefault("a", b"2") == b"1"
    assert store["a"] == b"1"


def test_clear_deletes_everything(store):
    store.update(a=b"1", b=b"2")
    store.clear()
    assert dict(store) == {}


def test_a_batch_is_one_commit(store):
    store["b"] = b"0"
    with store.batch() as batch:
        batch.put("a", b"1")
        batch.put("c", b"1")
        batch.delete("b")
        assert dict(store) == {"b": b"0"}
    assert dict(store) == {"a": b"1", "c": b"1"}
    assert store.entry("a").sequence == store.entry("c").sequence


def test_an_exception_discards_the_batch(store):
    with pytest.raises(ZeroDivisionError), store.batch() as batch:
        batch.put("a", b"1")
        raise ZeroDivisionError
    assert dict(store) == {}


def test_an_update_is_one_commit(store):
    sequence = store.update([("a", b"1"), ("b", b"2")])
    assert store.entry("a") == Entry(b"1", sequence)
    assert store.entry("b") == Entry(b"2", sequence)


@pytest.mark.parametrize("count", [1, 16, 17, 65])
def test_an_update_of_any_length_is_one_commit(store, count):
    pairs = [(f"key {number}", b"%d" % number) for number in range(count)]
    before = store.put("x", b"")
    assert store.update([*pairs, (pairs[0][0], b"last")]) == before + 1
    assert store["key 0"] == b"last"
    assert store.get_many([key for key, _ in pairs[1:]]) == dict(pairs[1:])


@pytest.mark.parametrize(
    ("pair", "error"),
    [(("\udc80", b""), ValueError), ((1, b""), TypeError), (("b", "text"), TypeError)],
)
def test_an_update_that_is_refused_writes_nothing(store, pair, error):
    with pytest.raises(error):
        store.update([("a", b"1"), pair])
    assert dict(store) == {}


def test_an_update_of_a_closed_store_is_refused(store):
    store.close()
    with pytest.raises(StoreClosed):
        store.update([("a", b"1")])


def test_an_update_takes_what_a_dict_takes(store):
    store.update([("a", b"1"), ["b", b"2"], ("c", bytearray(b"3"))], d=b"4")
    store.update([["e", b"5"], ("f", b"6"), ("f", b"7")])
    assert dict(store.items()) == dict(
        zip("abcdef", (b"1", b"2", b"3", b"4", b"5", b"7"), strict=True)
    )
    before = store.stats()["sequence"]
    for wrong in (
        [("g", b"8"), ("h",)],
        [("g", b"8"), 9],
        [("g", b"8"), ("h", "text")],
        [("g", b"8"), (9, b"")],
    ):
        with pytest.raises((TypeError, ValueError)):
            store.update(wrong)
    assert store.stats()["sequence"] == before


def test_compare_and_put_takes_only_the_present_sequence(store):
    first = store.compare_and_put("a", b"1", expected=0)
    second = store.compare_and_put("a", b"2", expected=first)
    assert second > first
    for stale in (0, first):
        with pytest.raises(Conflict) as caught:
            store.compare_and_put("a", b"3", expected=stale)
        assert caught.value.sequence == second
    assert store["a"] == b"2"


def test_modify_calls_again_when_another_was_faster(store, tmp_path):
    store["n"] = b"1"
    calls = []

    def add(value: bytes | None) -> bytes:
        calls.append(value)
        if len(calls) == 1:
            with Store(tmp_path / "store") as other:
                other.put("n", b"10")
        return str(int(value or 0) + 1).encode()

    store.modify("n", add)
    assert calls == [b"1", b"10"]
    assert store["n"] == b"11"


def test_modify_begins_with_none(store):
    store.modify("n", lambda value: b"none" if value is None else value)
    assert store["n"] == b"none"


@pytest.mark.parametrize("key", [b"bytes", 1, None])
def test_a_key_that_is_not_str_is_refused(store, key):
    for call in (
        lambda: store.put(key, b""),
        lambda: store.get(key),
        lambda: store.delete(key),
        lambda: store.__getitem__(key),
        lambda: store.__setitem__(key, b""),
        lambda: store.compare_and_put(key, b"", expected=0),
        lambda: store.update({key: b""}),
    ):
        with pytest.raises(TypeError, match="str"):
            call()
    assert dict(store) == {}


@pytest.mark.parametrize("value", ["text", 1, None, [b"list"]])
def test_a_value_that_is_not_a_buffer_is_refused(store, value):
    for call in (
        lambda: store.put("key", value),
        lambda: store.compare_and_put("key", value, expected=0),
        lambda: store.update({"good": b"", "key": value}),
    ):
        with pytest.raises(TypeError):
            call()
    assert dict(store) == {}


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "pop", "update", "setdefault", "clear", "batch"]),
            st.sampled_from(["", "a", "b", "é", "a\0b"]),
            st.binary(max_size=20),
        )
    )
)
def test_it_does_what_a_dict_does(store, steps):
    store.clear()
    model: dict[str, bytes] = {}
    for step, key, value in steps:
        if step == "put":
            store[key] = model[key] = value
        elif step == "pop":
            assert store.pop(key, None) == model.pop(key, None)
        elif step == "update":
            store.update({key: value, "z": value})
            model.update({key: value, "z": value})
        elif step == "setdefault":
            assert store.setdefault(key, value) == model.setdefault(key, value)
        elif step == "clear":
            store.clear()
            model.clear()
        else:
            with store.batch() as batch:
                batch.delete(key)
                batch.put("z", value)
            model.pop(key, None)
            model["z"] = value
        assert dict(store.items()) == model
        assert store == model
