# Memory that processes share: what runtime/slots.py divides up.

from libc.errno cimport errno
from posix.mman cimport MADV_REMOVE, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, madvise, mmap, munmap


cdef class SharedMapping:
    """All of an anonymous file (memfd), mapped. Needs no descriptor once it is made.

    fd: of the file; may be closed afterwards.
    size: of the file, in bytes.
    writable: a store into a mapping that is not ends the process.
    """

    cdef char *at
    cdef readonly size_t size
    cdef readonly bint writable

    def __cinit__(self, int fd, size_t size, *, bint writable=True):
        cdef void *at = mmap(NULL, size, PROT_READ | (PROT_WRITE if writable else 0), MAP_SHARED, fd, 0)
        if at is MAP_FAILED:
            raise OSError(errno, f"mmap of {size} bytes: {os.strerror(errno)}")
        self.at = <char *>at
        self.size = size
        self.writable = writable

    def __dealloc__(self):
        if self.at is not NULL:
            munmap(self.at, self.size)

    cdef int _check(self, size_t offset, size_t size) except -1:
        if offset > self.size or size > self.size - offset:
            raise ValueError(f"{size} bytes at {offset} are not within a mapping of {self.size}")
        return 0

    def write(self, size_t offset, data):
        """Copy a contiguous buffer to `offset`; gives up the GIL for a large one."""
        cdef Py_buffer view
        if not self.writable:
            raise ValueError("the mapping is read-only")
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self._check(offset, view.len)
            if view.len < LARGE:
                memcpy(self.at + offset, view.buf, view.len)
            else:
                with nogil:
                    memcpy(self.at + offset, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def view(self, size_t offset, size_t size, owner, *, bint writable=False):
        """A memoryview of bytes. While it lives, or anything made of it, so do the mapping and `owner`."""
        cdef _Window window = _Window.__new__(_Window)
        self._check(offset, size)
        window.mapping = self
        window.owner = owner
        window.at = self.at + offset
        window.size = size
        window.writable = writable and self.writable
        return memoryview(window)

    def give_back(self, size_t offset, size_t size):
        """Free the memory of whole pages; they read as zeros afterwards."""
        self._check(offset, size)
        madvise(self.at + offset, size, MADV_REMOVE)


cdef class _Window:
    cdef SharedMapping mapping
    cdef object owner
    cdef char *at
    cdef size_t size
    cdef bint writable

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.at, <Py_ssize_t>self.size, not self.writable, flags)

    def __releasebuffer__(self, Py_buffer *buffer):
        pass
