"""Zero copy: a view of a value stays as it was while anything holds on to it, whatever happens to the store."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref

import numpy as np
import pytest

from dora_state import Store
from dora_state.errors import StoreClosed

pa = pytest.importorskip("pyarrow")

SIZES = {
    "small": 1000,
    "large": 300_000,
    "blob": 17 * 1024 * 1024,  # in a file of its own
}


def numbers(size: int) -> np.ndarray:
    return np.arange(size // 8, dtype="<u8") * 0x9E3779B97F4A7C15


def as_numpy(view: memoryview) -> np.ndarray:
    return np.frombuffer(view, dtype="<u8")


def as_arrow(view: memoryview) -> np.ndarray:
    buffer = pa.py_buffer(view)
    array = pa.Array.from_buffers(pa.uint64(), len(view) // 8, [None, buffer])
    assert array.buffers()[1].address == buffer.address
    return array.to_numpy(zero_copy_only=True)


def overwrite(store: Store, key: str) -> None:
    for i in range(20):
        store.put(key, bytes([i]) * 100)


def delete(store: Store, key: str) -> None:
    del store[key]
    assert key not in store


def compact(store: Store, key: str) -> None:
    """Until not a byte of the log is where it was."""
    del store[key]
    end = store.stats()["committed"]
    while store.stats()["dropped_segments"] == 0 or store.stats()["log_bytes"] > 10**6:
        store.put("filler", bytes(60_000))
        store.compact()
        assert store.stats()["committed"] < end + 10**9


def expire(store: Store, key: str) -> None:
    """The time to live passes, and compaction takes away what was there."""
    store.put(key, store[key], ttl=0.001)
    with pytest.raises(KeyError):
        while True:
            store.view(key)


def expire_and_compact(store: Store, key: str) -> None:
    """What the view shows is itself past its time, and gone from the disk."""
    while key in store:
        time.sleep(0.001)
    compact_all(store)


def compact_all(store: Store) -> None:
    store.put("filler", bytes(60_000))
    store.compact()


def close(store: Store, key: str) -> None:
    store.close()
    with pytest.raises(StoreClosed):
        store.view(key)


def first_view(store: Store, value: np.ndarray, ttl: float | None) -> memoryview:
    """Of a key that may expire before a slow machine gets here."""
    while True:
        store.put("key", value, ttl=ttl)
        with contextlib.suppress(KeyError):
            return store.view("key")


@pytest.mark.parametrize("through", [as_numpy, as_arrow])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("happens", [overwrite, delete, compact, expire, expire_and_compact, close])
def test_i37_a_view_stays_as_it_was(tmp_path, happens, size, through):
    value = numbers(size)
    store = Store(tmp_path / "store")
    view = first_view(store, value, ttl=0.2 if happens is expire_and_compact else None)
    array = through(view)
    del view  # what was made of it keeps it
    gc.collect()
    assert not array.flags.writeable
    happens(store, "key")
    assert np.array_equal(array, value)
    store.close()
    gc.collect()
    assert np.array_equal(array, value)


@pytest.mark.parametrize("through", [as_numpy, as_arrow])
def test_nothing_is_copied(tmp_path, through):
    with Store(tmp_path / "store") as store:
        store.put("key", numbers(300_000))
        first, second = through(store.view("key")), through(store.view("key"))
        assert first.ctypes.data == second.ctypes.data
        assert first.ctypes.data % 8 == 0
        store.put("expiring", numbers(300_000), ttl=1000)
        assert through(store.view("expiring")).ctypes.data % 8 == 0


def test_the_last_view_gives_the_memory_back(tmp_path):
    def mapped() -> int:
        with open("/proc/self/maps") as maps:
            return sum("store" in line for line in maps)

    store = Store(tmp_path / "store")
    store.put("key", numbers(300_000))
    array = as_numpy(store.view("key"))
    store.close()
    assert mapped() == 1
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None
    assert mapped() == 0


def test_a_view_cannot_be_written(tmp_path):
    with Store(tmp_path / "store") as store:
        store.put("key", b"value")
        view = store.view("key")
        assert view.readonly
        with pytest.raises(TypeError):
            view[0] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            np.frombuffer(view, dtype="u1").flags.writeable = True


def test_an_empty_value_has_a_view(tmp_path):
    with Store(tmp_path / "store") as store:
        store.put("key", b"")
        assert store.view("key").nbytes == 0
        assert pa.py_buffer(store.view("key")).size == 0
