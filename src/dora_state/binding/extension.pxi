# For extension modules: include/dora_state_api.h, and save_state for Cython.

cdef extern from "dora_state_api.h" nogil:
    ctypedef struct ds_api "struct ds_api":
        pass

    const ds_api ds__api

api = PyCapsule_New(<void *>&ds__api, "dora_state._core.api", NULL)

cdef object _save_state = None
cdef object _stage = None
cdef object _check_size = None
cdef size_t _value_limit = 0


def on_save(save_state, stage, check_size, size_t value_limit):
    """Tells where save_state_direct() goes: to the stage of the handler that runs, else to save_state() of operator.py.
    check_size() there says what is wrong with a value of more than value_limit bytes.
    """
    global _save_state, _stage, _check_size, _value_limit
    _save_state = save_state
    _stage = stage
    _check_size = check_size
    _value_limit = value_limit


cdef int save_state_direct(str key, const void *value, size_t size) except -1:
    cdef object data
    cdef Py_ssize_t key_size
    cdef const char *c_key
    if _save_state is None:
        raise errors.OperatorError("save_state_direct works in an operator that `dora-state run` hosts; a program of your"
                                   " own can use a Store")
    if size > _value_limit:  # before the copy
        _check_size(key, size)
    data = PyBytes_FromStringAndSize(<const char *>value, <Py_ssize_t>size)
    handler = get_value(_stage, None)
    if handler is not None:
        c_key = _key(key, &key_size)
        # What needs no closer look; save_state() says what is wrong with the rest.
        if c_key[0] != b"@" and key_size <= DS_KEY_LIMIT and handler.put(key, data):
            return 0
    _save_state(key, data)
    return 0
