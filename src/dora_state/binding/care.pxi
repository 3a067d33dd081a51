# The store as a whole: repaired, fenced, synced, compacted, checked, counted.


cdef uint64_t _settle(Store store) except? 0:
    cdef uint64_t sequence = 0
    cdef ds_status status
    store.calls += 1
    with nogil:
        status = ds_settle(store.handle, &sequence)
    store.calls -= 1
    if status != DS_OK:
        raise _error(status)
    return sequence


cdef uint64_t _fence(Store store, uint64_t incarnation) except? 0:
    cdef uint64_t sequence = 0
    cdef ds_status status
    store.calls += 1
    with nogil:
        status = ds_fence(store.handle, incarnation, &sequence)
    store.calls -= 1
    if status != DS_OK:
        raise _error(status)
    return sequence


cdef int _sync(Store store) except -1:
    cdef ds_status status
    store.calls += 1
    with nogil:
        status = ds_sync(store.handle)
    store.calls -= 1
    if status != DS_OK:
        raise _error(status)
    return 0


cdef int _compact(Store store) except -1:
    cdef ds_status status
    store.calls += 1
    with nogil:
        status = ds_compact(store.handle)
    store.calls -= 1
    if status != DS_OK:
        raise _error(status)
    return 0


cdef uint64_t _verify(Store store) except? 0:
    cdef uint64_t frames = 0
    cdef ds_status status
    store.calls += 1
    with nogil:
        status = ds_verify(store.handle, &frames)
    store.calls -= 1
    if status != DS_OK:
        raise _error(status)
    return frames


cdef dict _stats(Store store):
    cdef ds_stats stats
    cdef ds_status status = ds_stats_read(store.handle, &stats)
    if status != DS_OK:
        raise _error(status)
    return {
        "keys": stats.keys[DS_USER],
        "runtime_keys": stats.keys[DS_RUNTIME],
        "live_bytes": stats.live_bytes,
        "log_bytes": stats.log_bytes,
        "sequence": stats.sequence,
        "committed": stats.committed,
        "synced": stats.synced,
        "fence": stats.fence,
        "dropped_bytes": stats.dropped_bytes,
        "repairs": stats.repairs,
        "index_slots": stats.index_slots,
        "relocated_bytes": stats.relocated_bytes,
        "dropped_segments": stats.dropped_segments,
        "waits": stats.waits,
        "verified_bytes": stats.verified_bytes,
        "expired_keys": stats.expired_keys,
        "clock_ns": stats.clock_ns,
    }
