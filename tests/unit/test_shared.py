"""kvs_* in processes that dora did not start. tests/dora/test_kvs.py has them in real dataflows."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import pytest

import dora_state
from dora_state import (
    kvs,
    kvs_batch,
    kvs_compare_and_write,
    kvs_delete,
    kvs_entry,
    kvs_keys,
    kvs_open,
    kvs_read,
    kvs_update,
    kvs_wait,
    kvs_wait_async,
    kvs_write,
)
from dora_state.errors import Conflict, OperatorError

WAIT_S = 30
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(autouse=True)
def shared(tmp_path, monkeypatch):
    """A state directory of the test's own."""
    monkeypatch.delenv("DORA_NODE_CONFIG", raising=False)
    monkeypatch.delenv("DORA_STATE_SHARED", raising=False)
    monkeypatch.setenv("DORA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(kvs, "_told", None)
    kvs._forget_after_fork()
    yield tmp_path / "state"
    if kvs._store is not None:
        kvs._store.close()
    kvs._forget_after_fork()


def increment(value: bytes) -> bytes:
    return str(int(value) + 1).encode()


# Reading and writing


def test_a_missing_key_is_a_key_error_or_the_default():
    with pytest.raises(KeyError, match="nothing"):
        kvs_read("nothing")
    assert kvs_read("nothing", default=None) is None
    assert kvs_read("nothing", b"else") == b"else"
    with pytest.raises(KeyError, match="nothing"):
        kvs_entry("nothing")


def test_an_entry_has_the_sequence_of_its_commit():
    sequence = kvs_write("a", b"1")
    kvs_write("b", b"2")
    assert kvs_entry("a") == (b"1", sequence)


def test_a_write_that_compares_is_refused_when_somebody_was_faster():
    first = kvs_compare_and_write("owner", b"me", expected=0)
    with pytest.raises(Conflict) as conflict:
        kvs_compare_and_write("owner", b"you", expected=0)
    assert conflict.value.sequence == first
    assert kvs_compare_and_write("owner", b"you", expected=first) > first
    assert kvs_read("owner") == b"you"


def test_a_batch_is_one_commit_and_an_exception_discards_it():
    kvs_write("gone", b"")
    with kvs_batch() as batch:
        batch.put("a", b"1")
        batch.delete("gone")
        assert kvs_keys() == ["gone"]
    assert kvs_keys() == ["a"]
    with pytest.raises(ZeroDivisionError), kvs_batch() as batch:
        batch.put("b", b"2")
        _ = 1 / 0
    assert kvs_keys() == ["a"]


def test_keys_are_those_with_the_prefix_sorted():
    for key in ("b/2", "a", "b/1", "b", "c"):
        kvs_write(key, b"")
    assert kvs_keys("b/") == ["b/1", "b/2"]
    assert kvs_keys() == ["a", "b", "b/1", "b/2", "c"]


def test_an_empty_store_is_open_like_any_other(monkeypatch):
    """bool() of a mapping is a question about its keys, which may take a walk over all of them."""
    assert kvs_keys() == []
    monkeypatch.setattr(kvs, "_open", None)
    monkeypatch.setattr(dora_state.Store, "__len__", None)
    assert kvs_read("nothing", None) is None
    kvs_write("a", b"1", ttl=60)
    assert kvs_read("a") == b"1"


def test_a_key_with_a_time_to_live_expires():
    kvs_write("short", b"1", ttl=0.01)
    with kvs_batch() as batch:
        batch.put("shorter", b"1", ttl=1e-9)
        batch.put("stays", b"1")
    kvs_update("updated", increment, default=b"0", ttl=1e-9)
    kvs_compare_and_write("claimed", b"", expected=0, ttl=1e-9)
    assert kvs_compare_and_write("claimed", b"", expected=0, ttl=1e-9)
    while kvs_read("short", default=None) is not None:
        pass
    assert kvs_keys() == ["stays"]
    for ttl in (0, -1, float("nan"), float("inf"), 11 * 366 * 86400):
        with pytest.raises(ValueError, match="a time to live is more than 0 seconds"):
            kvs_write("stays", b"2", ttl=ttl)
    for ttl in ("1", True, b"1"):
        with pytest.raises(TypeError, match="a time to live is a number of seconds"):
            kvs_write("stays", b"2", ttl=ttl)
    assert kvs_read("stays") == b"1"


# Updating


def test_an_update_returns_what_it_wrote():
    assert kvs_update("n", increment, default=b"0") == b"1"
    assert kvs_update("n", increment, default=b"0") == b"2"
    assert kvs_read("n") == b"2"
    assert kvs_update("n", lambda value: bytearray(value) + b"!") == b"2!"


def test_an_update_of_a_missing_key_gives_the_function_the_default():
    seen = []
    kvs_update("n", lambda value: seen.append(value) or b"")
    kvs_delete("n")
    kvs_update("n", lambda value: seen.append(value) or b"", default=b"zero")
    assert seen == [None, b"zero"]


def test_an_update_calls_the_function_again_when_somebody_was_faster():
    seen = []

    def function(value: bytes) -> bytes:
        seen.append(value)
        if len(seen) < 3:
            kvs_write("n", b"%d" % len(seen))
        return value + b"!"

    assert kvs_update("n", function, default=b"0") == b"2!"
    assert seen == [b"0", b"1", b"2"]


def test_an_update_whose_function_fails_writes_nothing():
    kvs_write("n", b"1")
    with pytest.raises(ValueError, match="invalid literal"):
        kvs_update("n", lambda value: int("x"))
    with pytest.raises(TypeError):
        kvs_update("n", lambda value: 7)
    assert kvs_read("n") == b"1"


def count(times: int) -> None:
    for _ in range(times):
        kvs_update("n", increment, default=b"0")


def test_no_update_of_several_processes_is_lost():
    workers = [SPAWN.Process(target=count, args=(500,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(WAIT_S)
        assert worker.exitcode == 0
    assert kvs_read("n") == b"1500"


def hammer() -> None:
    while kvs_read("stop", default=None) is None:
        kvs_update("n", increment, default=b"0")


def test_an_update_that_takes_long_is_not_outrun_for_ever():
    """It loses every race, unless the others let it go first."""
    calls = 0

    def slow(value: bytes) -> bytes:
        nonlocal calls
        calls += 1
        assert calls < 500, "outrun each time"
        give_up = time.monotonic() + 0.02
        while kvs_read("n") == value and time.monotonic() < give_up:
            pass
        return b"1000000"

    kvs_write("n", b"0")
    others = [SPAWN.Process(target=hammer) for _ in range(2)]
    for other in others:
        other.start()
    while int(kvs_read("n")) < 1000:
        kvs_wait("n", after=kvs_entry("n").sequence, timeout=1)
    assert kvs_update("n", slow) == b"1000000"
    assert calls > 1
    kvs_write("stop", b"")
    for other in others:
        other.join(WAIT_S)
    assert int(kvs_read("n")) >= 1000000
    assert kvs._shared()._turn_take("n", 1.0, 0) != 0, "a turn was left behind"


def test_who_dies_in_his_turn_stops_nobody():
    store = kvs._shared()
    for nonsense in (-1.0, float("nan"), float("inf"), 61.0, 1e300):
        with pytest.raises(ValueError, match="a turn takes seconds from 0 to 60"):
            store._turn_take("n", nonsense, 0)
    token = store._turn_take("n", 0.05, 0)
    assert token
    assert store._turn_take("n", 0.05, 0) == 0  # it is given
    kvs_update("n", increment, default=b"0")  # waits, but not for ever
    kvs_update("other", increment, default=b"0")
    assert store._turn_take("n", 0.05, 0) not in (0, token)


# Waiting


def answer(key: str, after: int) -> None:
    assert kvs_wait("question", timeout=WAIT_S) is not None
    kvs_write(key, b"42")


def test_a_wait_ends_with_the_write_of_another_process():
    other = SPAWN.Process(target=answer, args=("answer/deep thought", 0))
    other.start()
    kvs_write("question", b"")
    sequence = kvs_wait("answer/", timeout=WAIT_S, prefix=True)
    assert kvs_entry("answer/deep thought") == (b"42", sequence)
    assert kvs_wait("answer/deep thought") == sequence  # was ever written
    assert kvs_wait("answer/deep thought", after=sequence, timeout=0) is None
    other.join(WAIT_S)


def test_an_asynchronous_wait_ends_with_the_write_of_another_process():
    async def main() -> int | None:
        beats = 0

        async def heart() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0)

        heartbeat = asyncio.create_task(heart())
        sequence = await kvs_wait_async("answer", timeout=WAIT_S)
        heartbeat.cancel()
        assert beats > 1  # the loop ran on
        return sequence

    other = SPAWN.Process(target=answer, args=("answer", 0))
    other.start()
    kvs_write("question", b"")
    assert asyncio.run(main()) == kvs_entry("answer").sequence
    other.join(WAIT_S)


def waiting_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "dora-state wait"]


def test_a_cancelled_wait_leaves_no_thread():
    async def main() -> None:
        waits = [asyncio.create_task(kvs_wait_async("never")) for _ in range(40)]
        while len(waiting_threads()) < 40:
            await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError)
            for end in await asyncio.gather(*waits, return_exceptions=True)
        )

    kvs_write("other", b"")
    asyncio.run(main())
    for thread in waiting_threads():
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_an_asynchronous_wait_times_out_and_tells_errors():
    async def main() -> None:
        assert await kvs_wait_async("never", timeout=0) is None
        assert await kvs_wait_async("never", timeout=0.001) is None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(kvs_wait_async("never"), 0.001)
        with pytest.raises(TypeError, match="a key is a str"):
            await kvs_wait_async(b"never")
        with pytest.raises(ValueError, match="timeout"):
            await kvs_wait_async("never", timeout=-1)

    asyncio.run(main())


def test_closing_the_store_ends_an_asynchronous_wait(tmp_path):
    async def main(store: dora_state.Store) -> None:
        wait = asyncio.create_task(store.wait_async("never", after=0))
        while not waiting_threads():
            await asyncio.sleep(0)
        await asyncio.to_thread(store.close)
        with pytest.raises(dora_state.errors.StoreClosed):
            await wait

    asyncio.run(main(dora_state.Store(tmp_path / "other")))


# The package


def test_importing_the_package_imports_little():
    script = (
        "import dora_state, sys; names = {n for n in sys.modules if n.startswith('dora_state')};"
        "print(sorted(names), 'asyncio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert shown.stdout == b"['dora_state', 'dora_state.started_in'] False\n"


def test_every_public_name_is_there():
    script = "from dora_state import *; import dora_state; [print(n, eval(n)) for n in dora_state.__all__]"
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True
    )
    assert [line.split()[0] for line in shown.stdout.splitlines()] == dora_state.__all__
    assert set(dora_state.__all__) <= set(dir(dora_state))
    with pytest.raises(AttributeError, match="no attribute 'kvs_nothing'"):
        _ = dora_state.kvs_nothing


def test_a_process_outside_of_a_dataflow_may_name_the_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("DORA_STATE_DIR")
    monkeypatch.chdir(tmp_path)
    kvs_open("mine")
    kvs_write("a", b"1")
    kvs_open(tmp_path / "mine")  # the same
    with pytest.raises(OperatorError, match=r"use .*mine/shared already, not .*other/shared"):
        kvs_open("other")
    assert not (tmp_path / "other").exists()
    child = os.fork()
    if child == 0:
        os._exit(kvs_read("a", b"") != b"1")
    assert os.waitpid(child, 0)[1] == 0
    with dora_state.Store(tmp_path / "mine" / "shared") as store:
        assert dict(store) == {"a": b"1"}


def test_in_a_dataflow_nobody_names_the_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("DORA_STATE_SHARED", str(tmp_path / "shared"))
    with pytest.raises(OperatorError, match="in it kvs_\\* find the shared store by themselves"):
        kvs_open(tmp_path / "mine")


def test_outside_of_a_dataflow_it_has_to_be_told_where(monkeypatch):
    monkeypatch.delenv("DORA_STATE_DIR")
    with pytest.raises(OperatorError, match="set DORA_STATE_DIR"):
        kvs_read("x")
