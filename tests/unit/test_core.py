"""The binding of the engine: what the tests in C cannot see."""

from __future__ import annotations

import asyncio
import math
import threading
import time

import pytest

from dora_state import Store
from dora_state.errors import Compacted, StateError, StoreClosed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


def test_get_many_is_a_dict_of_what_is_there(store):
    store.update({"a": b"1", "b": b"2"})
    assert store.get_many(["a", "missing", "b"]) == {"a": b"1", "b": b"2"}
    assert store.get_many([]) == {}
    with pytest.raises(TypeError, match="a key is a str, not int"):
        store.get_many(["a", 1])


@pytest.mark.parametrize("call", ["put", "get", "delete", "view", "wait", "[]", "batch"])
def test_a_key_that_is_no_key_is_told_so(store, call):
    def use(key):
        calls = {
            "put": lambda: store.put(key, b""),
            "get": lambda: store.get(key),
            "delete": lambda: store.delete(key),
            "view": lambda: store.view(key),
            "wait": lambda: store.wait(key, after=0, timeout=0),
            "[]": lambda: store[key],
            "batch": lambda: store.batch().put(key, b""),
        }
        calls[call]()

    for key in (1, b"bytes", None):
        with pytest.raises(TypeError, match="a key is a str, not"):
            use(key)
    with pytest.raises(ValueError, match="surrogate"):
        use("\udcff")
    assert len(store) == 0


def test_changes_tells_commits_in_order(store):
    first = store.put("a", b"1")
    with store.batch() as batch:
        batch.put("b", b"2")
        batch.put("c", b"3")
    store.delete("a")
    assert list(store.changes()) == [
        (first, {"a": b"1"}),
        (first + 1, {"b": b"2", "c": b"3"}),
        (first + 2, {"a": None}),
    ]
    assert list(store.changes(after=first + 1)) == [(first + 2, {"a": None})]
    assert list(store.changes(after=first + 2)) == []


def test_changes_says_compacted_when_the_next_commit_is_gone(store):
    sequence = store.put("a", b"1")
    last = store.put("a", b"2")
    store.compact()
    with pytest.raises(Compacted, match="read all keys"):
        list(store.changes(after=sequence))
    assert list(store.changes(after=last)) == []
    assert store.get("a") == b"2"


def test_wait_does_not_miss_a_delete_that_was_compacted_away(store):
    sequence = store.put("a", b"1")
    store.delete("a")
    last = store.put("b", b"2")
    store.compact()
    seen = store.wait("a", after=sequence, timeout=0)
    assert seen is not None
    assert seen >= last
    assert store.wait("a", after=seen, timeout=0) is None
    assert store.wait("a", after=0, timeout=0) is None


def test_wait_wakes_on_a_commit_of_another_thread(store):
    sequence = store.put("a", b"1")
    waiting = threading.Event()
    woken = []

    def wait():
        waiting.set()
        woken.append(store.wait("a", after=sequence, timeout=60))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    committed = store.put("a", b"2")
    thread.join()
    assert woken == [committed]


def test_wait_gives_none_when_the_time_is_up(store):
    sequence = store.put("a", b"1")
    assert store.wait("a", after=0) == sequence
    assert store.wait("a", after=sequence, timeout=0) is None
    assert store.wait("a", after=sequence, timeout=0.01) is None
    assert store.wait("", prefix=True, after=0, timeout=0) == sequence
    with pytest.raises(ValueError, match="timeout"):
        store.wait("a", after=0, timeout=-1)


@pytest.mark.parametrize("timeout", [math.inf, 1e300, 10**400])
def test_a_timeout_without_an_end_is_for_ever(store, timeout):
    sequence = store.put("a", b"1")
    threading.Timer(0.1, store.put, ("a", b"2")).start()
    assert store.wait("a", after=sequence, timeout=timeout) == sequence + 1
    assert asyncio.run(store.wait_async("a", after=sequence, timeout=timeout)) == sequence + 1


def test_wait_tells_of_a_put_that_has_expired_since(store):
    """Expiry is no commit: it hides the value, not that there was a put; like a delete."""
    sequence = store.put("beat", b"1", ttl=1e-9)
    assert "beat" not in store
    assert store.wait("beat", after=0, timeout=0) == sequence
    assert store.wait("be", prefix=True, after=0, timeout=0) == sequence
    assert store.wait("beat", after=sequence, timeout=0) is None
    store.put("beat", b"2")
    deleted = store.delete("beat")
    assert store.wait("beat", after=sequence, timeout=0) == deleted


def test_close_ends_a_wait_of_another_thread(tmp_path):
    store = Store(tmp_path / "store")
    waiting = threading.Event()
    raised = []

    def wait():
        waiting.set()
        try:
            store.wait("a", after=0)
        except StoreClosed as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    waiting.wait()
    store.close()
    thread.join()
    # Either the wait had begun and was ended, or it came too late.
    assert len(raised) == 1


def test_a_store_is_opened_once(tmp_path):
    store = Store(tmp_path / "store")
    store.close()
    with pytest.raises(StateError, match="opened once"):
        store.__init__(tmp_path / "store")


def test_wait_lets_signals_through(store):
    import signal

    def interrupt(number, frame):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError):
            store.wait("a", after=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_view_outlives_overwriting_deleting_compaction_and_close(tmp_path):
    store = Store(tmp_path / "store")
    store.put("a", bytes(range(256)) * 20)
    view = store.view("a")
    for i in range(3000):
        store.put("a", b"%d" % i * 100)
    store.delete("a")
    store.compact()
    store.close()
    assert bytes(view) == bytes(range(256)) * 20
    with pytest.raises(TypeError):
        view[0] = 1


def test_the_log_stays_short_under_overwriting(store):
    for i in range(60_000):
        store.put(f"k{i % 10}", b"%d" % i * 20)
    deadline = time.monotonic() + 60
    while store.stats()["log_bytes"] > 8 << 20 and time.monotonic() < deadline:
        store.compact()
    stats = store.stats()
    assert stats["log_bytes"] <= 8 << 20
    assert stats["dropped_segments"] > 0
    assert {key: store[key] for key in store} == {
        f"k{i % 10}": b"%d" % i * 20 for i in range(59_990, 60_000)
    }
    store.verify()
