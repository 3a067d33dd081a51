# The binding of csrc/include/lifeline.h.

from cpython.buffer cimport PyBUF_WRITE
from cpython.memoryview cimport PyMemoryView_FromMemory

cdef extern from "<stdbool.h>":
    ctypedef bint c_bool "bool"


cdef extern from "lifeline.h" nogil:
    ctypedef struct ds_lifeline:
        pass

    ctypedef struct ds_handover:
        ds_store *store
        uint64_t incarnation
        int socket
        bint waits
        const void *start
        size_t start_size
        const char *source
        int64_t source_mtime_ns
        uint64_t source_size

    ctypedef struct ds_lifeline_report:
        bint died
        bint started
        bint replayed
        uint64_t died_ns
        uint64_t ready_ns

    ds_status ds_lifeline_new(ds_lifeline **out, int *memfd)
    void ds_lifeline_free(ds_lifeline *line)
    enum:
        DS_LIFELINE_NOTE

    ds_status ds_lifeline_hold(int memfd, char **note)
    char *ds_lifeline_note(ds_lifeline *line)
    ds_status ds_lifeline_watch(ds_lifeline *line, int pidfd, int eventfd)
    ds_status ds_lifeline_arm(ds_lifeline *line, const ds_handover *handover, c_bool *armed)
    ds_status ds_lifeline_event(ds_lifeline *line, uint64_t number, const void *message, size_t size, c_bool *armed)
    void ds_lifeline_withdraw(ds_lifeline *line)
    bint ds_lifeline_died(ds_lifeline *line)
    uint64_t ds_lifeline_begun(ds_lifeline *line)
    void ds_lifeline_disarm(ds_lifeline *line, ds_lifeline_report *report)


def hold_lifeline(int memfd):
    """In a worker: the end of this thread is what the host waits for. Returns the note, to be written to."""
    cdef char *note
    cdef ds_status status = ds_lifeline_hold(memfd, &note)
    if status != DS_OK:
        raise _error(status)
    return PyMemoryView_FromMemory(note, DS_LIFELINE_NOTE, PyBUF_WRITE)


cdef class Lifeline:
    """The host's end. Owns the memfd, to be given to the worker, until `close_memfd`."""

    cdef ds_lifeline *line
    cdef int memfd
    cdef Store store  # that the handover uses

    def __cinit__(self):
        self.line = NULL
        self.memfd = -1

    def __init__(self):
        cdef ds_status status
        if self.line is not NULL:
            raise errors.StateError("a Lifeline is made once")
        status = ds_lifeline_new(&self.line, &self.memfd)
        if status != DS_OK:
            raise _error(status)

    def __dealloc__(self):
        self.close()

    def close(self):
        """Watch no more. Idempotent."""
        cdef ds_lifeline *line = self.line
        self.line = NULL
        self.close_memfd()
        with nogil:
            ds_lifeline_free(line)
        self.store = None

    cdef int _check(self) except -1:
        if self.line is NULL:
            raise errors.StateError("the lifeline is closed")
        return 0

    def fileno(self):
        """The memfd."""
        return self.memfd

    def close_memfd(self):
        cdef int memfd = self.memfd
        self.memfd = -1
        if memfd >= 0:
            os.close(memfd)

    def note(self, bytes words not None):
        """Speak for a worker that cannot: what its successor is told of its end."""
        self._check()
        memcpy(ds_lifeline_note(self.line), PyBytes_AS_STRING(words),
               min(<size_t>PyBytes_GET_SIZE(words), <size_t>DS_LIFELINE_NOTE))

    def watch(self, int pidfd, int eventfd):
        """Start the thread. The worker holds its end by now."""
        self._check()
        cdef ds_status status = ds_lifeline_watch(self.line, pidfd, eventfd)
        if status != DS_OK:
            raise _error(status)

    def arm(self, Store store not None, unsigned long long incarnation, int socket, bint waits, bytes start, path,
            signature):
        """What to do at the worker's death; False if it is dead already. See ds_handover.

        signature: (modification time in nanoseconds, size) of the operator's file at `path`.
        """
        cdef ds_handover handover
        cdef ds_status status
        cdef c_bool armed = False
        cdef bytes name = os.fsencode(path)
        self._check()
        handover.store = store.handle
        handover.incarnation = incarnation
        handover.socket = socket
        handover.waits = waits
        handover.start = PyBytes_AS_STRING(start)
        handover.start_size = <size_t>PyBytes_GET_SIZE(start)
        handover.source = name
        handover.source_mtime_ns = signature[0]
        handover.source_size = signature[1]
        self.store = store
        with nogil:  # the thread may be reading the store under its mutex for long
            status = ds_lifeline_arm(self.line, &handover, &armed)
        if status != DS_OK:
            raise _error(status)
        return armed

    def event(self, unsigned long long number, bytes message not None):
        """The event that goes to the worker next; False if that is dead already."""
        cdef c_bool alive = False
        self._check()
        # With the GIL: the mutex is never held for longer than a copy takes.
        cdef ds_status status = ds_lifeline_event(self.line, number, PyBytes_AS_STRING(message),
                                                  <size_t>PyBytes_GET_SIZE(message), &alive)
        if status != DS_OK:
            raise _error(status)
        return alive

    def withdraw(self):
        """What was armed does not hold any more; from any thread, without waiting."""
        if self.line is not NULL:
            ds_lifeline_withdraw(self.line)

    @property
    def begun(self):
        """The number of the event that the worker began last."""
        self._check()
        return ds_lifeline_begun(self.line)

    @property
    def died(self):
        """Whether the worker's death was noticed."""
        return self.line is not NULL and ds_lifeline_died(self.line)

    def disarm(self):
        """Do nothing from here on but kill and report.

        Returns None while the worker lives, else (started, replayed, died, ready): whether the successor has START,
        whether it has the event, and when the death was noticed and all was done, in seconds of time.monotonic().
        """
        cdef ds_lifeline_report report
        if self.line is NULL:
            return None
        with nogil:
            ds_lifeline_disarm(self.line, &report)
        if not report.died:
            return None
        return report.started, report.replayed, report.died_ns / 1e9, report.ready_ns / 1e9
