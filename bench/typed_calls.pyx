# cython: language_level=3, boundscheck=False, wraparound=False
"""The loops of cython_calls.py: each is one pass over all keys, in which Python has no part but save()."""

from libc.stdlib cimport free, malloc

from dora_state cimport Store, ds_change, ds_value, put_change, save_state_direct

cdef enum:
    ROOM = 128

cdef class Pass:
    """The keys as pointers, and what to put under them."""

    cdef Store store
    cdef list keys, names
    cdef const char **at
    cdef size_t key_size, size, count
    cdef const char *value
    cdef bytes kept

    def __cinit__(self, Store store not None, list names, bytes value):
        self.store = store
        self.names = names
        self.keys = [name.encode() for name in names]
        self.count = len(names)
        self.key_size = len(self.keys[0])
        self.at = <const char **>malloc(self.count * sizeof(char *))
        for i in range(self.count):
            self.at[i] = <bytes>self.keys[i]
        self.kept = value
        self.value = value
        self.size = len(value)

    def __dealloc__(self):
        free(self.at)

    def put(self):
        cdef size_t i
        with nogil:
            for i in range(self.count):
                self.store.put_direct(self.at[i], self.key_size, self.value, self.size)

    def get(self):
        cdef size_t i
        cdef char into[ROOM]
        with nogil:
            for i in range(self.count):
                self.store.get_direct(self.at[i], self.key_size, into, ROOM)

    def view(self):
        cdef size_t i
        cdef ds_value value
        with nogil:
            for i in range(self.count):
                self.store.view_direct(self.at[i], self.key_size, &value)
                self.store.release_direct(&value)

    def batch(self):
        """Of ten."""
        cdef size_t i, j
        cdef ds_change changes[10]
        with nogil:
            for i in range(0, self.count - 9, 10):
                for j in range(10):
                    changes[j] = put_change(self.at[i + j], self.key_size, self.value, self.size)
                self.store.commit_direct(changes, 10)

    def save(self):
        for name in self.names:
            save_state_direct(<str>name, self.value, self.size)
