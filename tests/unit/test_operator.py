"""save_state and delete_state: what they take, and to whom a call belongs."""

from __future__ import annotations

import contextvars
import threading
import tracemalloc
from array import array

import pytest

from dora_state import delete_state, operator, save_state
from dora_state.errors import OperatorError, TooLarge
from dora_state.runtime.step import Stage


class FakeSession:
    def __init__(self) -> None:
        self.committed: list[tuple[str, bytes | None]] = []

    def commit_now(self, key: str, value: bytes | None) -> None:
        self.committed.append((key, value))


@pytest.fixture
def session(monkeypatch):
    session = FakeSession()
    monkeypatch.setattr(operator, "session", session)
    return session


@pytest.fixture
def stage(session):
    stage = Stage(1)
    token = operator.stage.set(stage)
    yield stage
    operator.stage.reset(token)


def test_a_handlers_saves_are_staged_and_the_last_of_a_key_counts(session, stage):
    save_state("a", b"1")
    save_state("b", b"1")
    save_state("a", b"2")
    delete_state("b")
    delete_state("c")
    assert session.committed == []
    assert stage.close() == {"a": b"2", "b": None, "c": None}


@pytest.mark.parametrize(
    "value", [b"ab", bytearray(b"ab"), memoryview(b"xabx")[1:3], array("B", b"ab")]
)
def test_any_buffer_is_taken(stage, value):
    save_state("a", value)
    assert stage.close() == {"a": b"ab"}


def test_numpy_and_arrow_are_buffers(stage):
    numpy = pytest.importorskip("numpy")
    pa = pytest.importorskip("pyarrow")
    numbers = numpy.arange(3, dtype="<u2")
    save_state("numpy", numbers)
    save_state("arrow", pa.py_buffer(b"ab"))
    assert stage.close() == {"numpy": numbers.tobytes(), "arrow": b"ab"}


def test_the_value_is_copied_at_the_call(stage):
    value = bytearray(b"before")
    save_state("a", value)
    value[:] = b"after!"
    assert stage.close() == {"a": b"before"}


def test_without_a_handler_a_save_commits_at_once(session):
    save_state("a", b"1")
    delete_state("b")
    assert session.committed == [("a", b"1"), ("b", None)]


def test_after_its_handler_too_also_with_its_context(session, stage):
    context = contextvars.copy_context()
    stage.close()
    context.run(save_state, "a", b"1")
    assert session.committed == [("a", b"1")]


def test_another_thread_is_no_handler_unless_it_carries_the_context(session, stage):
    context = contextvars.copy_context()
    for target, args in (
        (save_state, ("own", b"1")),
        (context.run, (save_state, "carried", b"1")),
    ):
        thread = threading.Thread(target=target, args=args)
        thread.start()
        thread.join()
    assert session.committed == [("own", b"1")]
    assert stage.close() == {"carried": b"1"}


def test_flush_replaces_what_was_staged_for_the_key(session, stage):
    save_state("a", b"1")
    save_state("a", b"2", flush=True)
    assert session.committed == [("a", b"2")]
    assert stage.close() == {}


@pytest.mark.parametrize("value", [1, 1.5, "text", None, {"a": 1}, object()])
def test_what_is_no_buffer_is_refused_and_told_what_to_do(stage, value):
    with pytest.raises(TypeError, match=r"is not a buffer; save bytes, for example msgpack"):
        save_state("a", value)
    assert stage.close() == {}


def test_a_buffer_with_gaps_is_refused_and_told_what_to_do(stage):
    with pytest.raises(ValueError, match=r"not C-contiguous; make it so with"):
        save_state("a", memoryview(b"abcd")[::2])


@pytest.mark.parametrize("kind", [bytes, memoryview])
def test_a_value_beyond_the_limit_is_refused_before_it_is_copied(stage, kind):
    largest = memoryview(bytes((1 << 30) + 1))  # zeroed by the kernel when touched: it never is
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=r"1073741825 bytes, the limit is 1073741824; save less"):
            save_state("a", largest.obj if kind is bytes else largest)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert stage.close() == {}


def test_a_value_at_the_limit_is_saved(stage, monkeypatch):
    monkeypatch.setattr(operator, "VALUE_BYTES", 10)
    save_state("a", memoryview(bytes(10)))
    with pytest.raises(TooLarge):
        save_state("b", array("H", range(6)))  # it is the bytes that count
    assert stage.close() == {"a": bytes(10)}


@pytest.mark.parametrize("key", [1, b"bytes", None])
@pytest.mark.parametrize("call", [lambda key: save_state(key, b""), delete_state])
def test_a_key_that_is_no_str_is_refused(stage, key, call):
    with pytest.raises(TypeError, match="a key is a str, not"):
        call(key)


def test_outside_of_an_operator_they_say_what_to_use_instead():
    with pytest.raises(OperatorError, match=r"in an operator .* a custom node can use kvs_write"):
        save_state("a", b"1")
