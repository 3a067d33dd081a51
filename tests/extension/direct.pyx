# cython: language_level=3
"""The calls without the GIL, for test_extension.py: each function is one call, and `hammer` many in a row."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from dora_state cimport Store, delete_change, ds_change, ds_value, put_change, save_state_direct


def put(Store store not None, bytes key, bytes value):
    cdef const char *k = key
    cdef const char *v = value
    cdef size_t key_size = len(key), size = len(value)
    cdef uint64_t sequence
    with nogil:
        sequence = store.put_direct(k, key_size, v, size)
    return sequence


def get(Store store not None, bytes key, size_t room):
    """(size, what was copied)"""
    cdef const char *k = key
    cdef size_t key_size = len(key)
    cdef char *into = <char *>malloc(room + 1)
    cdef Py_ssize_t size
    try:
        with nogil:
            size = store.get_direct(k, key_size, into, room)
        return size, into[:size] if 0 <= size <= <Py_ssize_t>room else None
    finally:
        free(into)


def view(Store store not None, bytes key, after_view):
    """The value, read after `after_view()` has done something to the store."""
    cdef ds_value value
    if not store.view_direct(<const char *>key, len(key), &value):
        return None
    try:
        after_view()
        return (<const char *>value.data)[:value.size], value.sequence
    finally:
        store.release_direct(&value)


def delete(Store store not None, bytes key):
    return store.delete_direct(<const char *>key, len(key))


def commit(Store store not None, dict puts, list deletes):
    cdef ds_change changes[64]
    cdef size_t count = 0
    for key, value in puts.items():
        changes[count] = put_change(<const char *><bytes>key, len(key), <const char *><bytes>value, len(value))
        count += 1
    for key in deletes:
        changes[count] = delete_change(<const char *><bytes>key, len(key))
        count += 1
    return store.commit_direct(changes, count)


def hammer(Store store not None, bytes key, started):
    """Puts and gets one key until there is an error, which is raised."""
    cdef const char *k = key
    cdef size_t size = len(key)
    cdef uint64_t number = 0
    cdef uint64_t found
    started()
    with nogil:
        while True:
            store.put_direct(k, size, &number, sizeof(number))
            if store.get_direct(k, size, &found, sizeof(found)) != sizeof(found) or found != number:
                break
            number += 1
    raise AssertionError(f"{found} after {number}")


def calls(Store store not None):
    """How many calls are under way."""
    return store.direct_calls


def save(str key, bytes value):
    save_state_direct(key, <const char *>value, len(value))


def save_sized(str key, bytes value, size_t size):
    """Claims that the value is of that size."""
    save_state_direct(key, <const char *>value, size)
