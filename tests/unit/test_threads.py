"""One handle in several threads, and what a fork makes of their calls. tests/c/test_threads.c has the engine's part."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from dora_state import Store
from dora_state._core import RawKey
from dora_state.errors import ForkedHandle, StoreClosed


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store") as store:
        yield store


@pytest.fixture
def waiter(store):
    """A thread in a wait that nothing ends but close()."""
    seen = []

    def wait():
        try:
            store.wait("never", after=0)
        except StoreClosed:
            seen.append("closed")

    thread = threading.Thread(target=wait)
    thread.start()
    store.put("begun", b"")
    yield thread
    store.close()
    thread.join()
    assert seen == ["closed"]


def in_a_child(function) -> int:
    """The status of a forked child that runs it, and is killed after five seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        try:
            function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_i5_a_forked_child_closes_a_handle_that_a_thread_was_waiting_with(store, waiter):
    def close():
        with pytest.raises(ForkedHandle):
            store.get("begun")
        store.close()
        store.close()
        assert store.closed

    # Many times: the thread is outside of the call between two slices of its wait.
    assert [in_a_child(close) for _ in range(5)] == [0] * 5
    assert store["begun"] == b""


def test_a_close_that_is_interrupted_can_be_repeated(tmp_path, monkeypatch):
    interrupted = []

    def interrupt(_):
        interrupted.append(True)
        monkeypatch.undo()
        raise KeyboardInterrupt

    def wait(store):
        with pytest.raises(StoreClosed):
            store.wait("never", after=0)

    for _ in range(100):  # until close() finds the thread in its call
        store = Store(tmp_path / "store")
        store.put("begun", b"")
        thread = threading.Thread(target=wait, args=(store,))
        thread.start()
        monkeypatch.setattr(time, "sleep", interrupt)
        try:
            store.close()
        except KeyboardInterrupt:
            break
        finally:
            monkeypatch.undo()
            if not interrupted:
                thread.join()
    assert interrupted
    assert not store.closed
    assert store["begun"] == b""
    store.close()
    thread.join()
    assert store.closed


def test_threads_on_one_iteration_of_changes_share_its_commits(store):
    first = store.put("0", b"")
    for i in range(1, 2000):
        store.update({f"{i}": bytes(100), f"{i} too": bytes(100)})
    wrong = []

    def follow(changes, seen):
        while True:
            try:
                seen.append(next(changes))
            except StopIteration:
                return
            except ValueError:
                time.sleep(0)  # another thread is at it
            except Exception as error:
                wrong.append(error)
                return

    for _ in range(10):
        seen = []
        changes = store.changes()
        threads = [threading.Thread(target=follow, args=(changes, seen)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert sorted(sequence for sequence, _ in seen) == list(range(first, first + 2000))
        assert all(len(commit) == 2 for sequence, commit in seen if sequence != first)


def test_changes_are_over_after_an_error(store):
    store.put("a", b"1")
    changes = store.changes()
    store.close()
    with pytest.raises(StoreClosed):
        next(changes)
    assert list(changes) == []


def test_a_wait_may_have_infinite_time(store):
    after = store.put("a", b"1")
    later = threading.Timer(0.01, store.put, ("a", b"2"))
    later.start()
    assert store.wait("a", after=after, timeout=float("inf")) == after + 1
    later.join()


def test_a_raw_key_is_found(store):
    store.put("a", b"1")
    assert RawKey(b"a") in store
    assert RawKey(b"b") not in store
    assert b"a" not in store
