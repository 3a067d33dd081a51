# Several keys at one point: csrc/many.c.


cdef dict _get_many(Store store, keys):
    cdef list names = list(keys)
    cdef Py_ssize_t count = len(names), i, size
    cdef ds_status status = DS_OK
    cdef ds_bytes *wanted = <ds_bytes *>PyMem_Malloc(max(1, count) * sizeof(ds_bytes))
    cdef ds_value *values = <ds_value *>PyMem_Malloc(max(1, count) * sizeof(ds_value))
    cdef dict found = {}
    cdef Py_ssize_t done = 0, pinned = 0
    try:
        if wanted is NULL or values is NULL:
            raise MemoryError()
        for i in range(count):
            wanted[i].data = _key(names[i], &size)
            wanted[i].size = size
        store.calls += 1
        with nogil:
            status = ds_get_many(store.handle, DS_USER, wanted, count, values)
        store.calls -= 1
        if status != DS_OK:
            raise _error(status)
        pinned = count
        while done < count:
            done += 1  # first: _copy() gives up the pin also when it fails
            if values[done - 1].owner is not NULL:
                found[names[done - 1]] = _copy(store, &values[done - 1])
    finally:
        for i in range(done, pinned):
            if values[i].owner is not NULL:
                ds_unpin(&values[i])
        PyMem_Free(wanted)
        PyMem_Free(values)
    return found
