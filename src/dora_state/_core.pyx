# cython: language_level=3, boundscheck=False, wraparound=False, embedsignature=True, freethreading_compatible=False
"""The binding of the store engine: convert, one C call, check, convert back.

The GIL is held for lookups and small puts, which are shorter than releasing it (a put costs about 100 ns, giving the
GIL up and taking it back 40 ns and a chance to wait for another thread); it is released for large copies, syncs, opens
and whatever may wait.

One module, so that a call from one room to another is a call of C; the rooms are in `binding/`, lowest first below.
"""

import math
import operator
import os
import time

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_CheckBuffer, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport get_value
from cpython.dict cimport PyDict_CheckExact
from cpython.exc cimport PyErr_CheckSignals, PyErr_Clear, PyErr_ExceptionMatches
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeUTF8
from libc.stdint cimport INT32_MAX, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "Python.h":
    # Without the "except" of Cython's own declaration: saving the state of exceptions costs as much as the call.
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) noexcept

from dora_state import errors

USER = DS_USER
RUNTIME = DS_RUNTIME

cdef enum:
    LARGE = 64 * 1024  # bytes; from here on a copy takes longer than giving up the GIL

include "binding/status.pxi"  # what a status is in Python
include "binding/arguments.pxi"  # what goes in: keys, buffers, times to live
include "binding/values.pxi"  # what comes out: bytes, and views that pin
include "binding/many.pxi"  # several keys at one point
include "binding/waiting.pxi"  # sleeping until a commit, taking turns
include "binding/care.pxi"  # the store as a whole: settle, fence, sync, compact, verify, stats
include "binding/iteration.pxi"  # all keys, all commits
include "binding/batch.pxi"  # several changes, one commit
include "binding/store.pxi"  # the handle, with the calls that take one key
include "binding/directories.pxi"  # repair, exchange
include "binding/extension.pxi"  # for Cython and C of others
include "binding/mapping.pxi"  # memory that processes share
include "binding/lifeline.pxi"  # how the host notices a death
