# Directories of stores that nobody has open.


def repair(path):
    """ds_repair(): the fields of `dora_state.Repaired`, in their order."""
    cdef ds_repair_report report
    cdef ds_status status
    cdef bytes name = os.fsencode(path)
    cdef const char *c_name = name
    if b"\0" in name:
        raise ValueError("a path holds no NUL byte")
    with nogil:
        status = ds_repair(c_name, &report)
    if status != DS_OK:
        raise _error(status)
    first = None if report.first_damage == UINT64_MAX else report.first_damage
    return (report.commits, report.records, report.dropped_bytes, report.damages, report.lost_blobs, first,
            report.sequence, os.fsdecode(<bytes>report.damaged_path))


def exchange(path, other):
    """Two directories swap their names in one step, durably."""
    cdef ds_status status
    cdef bytes a = os.fsencode(path)
    cdef bytes b = os.fsencode(other)
    status = ds_exchange(a, b)
    if status != DS_OK:
        raise _error(status)
