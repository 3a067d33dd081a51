/* A C extension module on the engine's function table, for test_extension.py. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dora_state_api.h>

static const struct ds_api *api;

/* round_trip(path, key, value): the value again, as the log has it. */
static PyObject *round_trip(PyObject *self, PyObject *arguments) {
    (void)self;
    const char *path, *key, *value;
    Py_ssize_t key_size, value_size;
    if (!PyArg_ParseTuple(arguments, "sy#y#", &path, &key, &key_size, &value, &value_size))
        return NULL;
    ds_options options;
    ds_store *store;
    ds_value found;
    ds_status status;
    memset(&found, 0, sizeof found);
    api->ds_options_init(&options);
    PyThreadState *thread = PyEval_SaveThread();
    status = api->ds_open(path, &options, &store);
    if (status == DS_OK) {
        status = api->ds_put(store, DS_USER, key, (size_t)key_size, value, (size_t)value_size, NULL);
        if (status == DS_OK)
            status = api->ds_get(store, DS_USER, key, (size_t)key_size, &found);
        api->ds_close(store);
    }
    PyEval_RestoreThread(thread);
    if (status != DS_OK) {
        PyErr_Format(PyExc_OSError, "%s: %s", api->ds_status_name(status), api->ds_error());
        return NULL;
    }
    PyObject *out = PyBytes_FromStringAndSize((const char *)found.data, (Py_ssize_t)found.size);
    api->ds_unpin(&found);
    return out;
}

static PyMethodDef methods[] = {{"round_trip", round_trip, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "plain", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_plain(void) {
    api = ds_import_api();
    return api == NULL ? NULL : PyModule_Create(&module);
}
