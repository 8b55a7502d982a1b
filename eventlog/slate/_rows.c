/* The rows of a batch, its write and the flush of the log, each in one call into SlateDB's shared library.

The same functions of that library that fast_binding.py calls through ctypes, one by one and with the interpreter lock
held, are called here in a loop without it. This module links against nothing: native_binding.py finds the functions'
addresses, checks their signatures and the sizes of the structures, and hands them over in `bind`. _pages.c reads, _sums.c adds.

Who owns what: a buffer, a handle and a future belong to the function of the library that takes them, also when it
fails. An error stays in the caller's `CallStatus`, whose buffer the binding frees when it makes an exception of it. */

#include "_rows.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct Rust rust;

/* ------------------------------------------------------------------ rows */

typedef struct {
    const char *key, *value; /* no value: the key is removed */
    Py_ssize_t key_bytes, value_bytes;
} Row;

static int bytes_of(PyObject *object, const char **data, Py_ssize_t *size)
{
    char *found;
    if (PyBytes_AsStringAndSize(object, &found, size) < 0)
        return -1;
    if (*size > INT32_MAX - 4) {
        PyErr_SetString(PyExc_OverflowError, "a key or a value has 2 GiB or more");
        return -1;
    }
    *data = found;
    return 0;
}

/* Where the bytes of each row are. They stay there as long as the dict does, which nobody else may change. */
static Row *rows_of(PyObject *dict, Py_ssize_t *count)
{
    PyObject *key, *value;
    Py_ssize_t at = 0, size = PyDict_Size(dict);
    if (size < 0)
        return NULL;
    Row *rows = malloc((size ? size : 1) * sizeof(Row)), *row = rows;
    if (rows == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    while (PyDict_Next(dict, &at, &key, &value)) {
        *row = (Row){0};
        if (bytes_of(key, &row->key, &row->key_bytes) < 0 ||
            (value != Py_None && bytes_of(value, &row->value, &row->value_bytes) < 0)) {
            free(rows);
            return NULL;
        }
        row++;
    }
    *count = row - rows;
    return rows;
}

/* A byte string as the binding writes it: its length in 4 bytes, big-endian, then the bytes. */
static RustBuffer lowered(const char *data, Py_ssize_t size, CallStatus *status)
{
    RustBuffer buffer = rust.alloc(size + 4, status);
    if (status->code)
        return buffer;
    for (int i = 0; i < 4; i++)
        buffer.data[i] = (uint8_t)(size >> (24 - 8 * i));
    memcpy(buffer.data + 4, data, size);
    buffer.len = size + 4;
    return buffer;
}

static int put_all(uint64_t batch, const Row *rows, Py_ssize_t count, CallStatus *status)
{
    for (const Row *row = rows; row < rows + count; row++) {
        RustBuffer key = lowered(row->key, row->key_bytes, status), value = {0};
        if (row->value != NULL && !status->code)
            value = lowered(row->value, row->value_bytes, status);
        uint64_t own = status->code ? 0 : rust.clone_batch(batch, status);
        if (status->code)
            return FAILED;
        if (row->value != NULL)
            rust.put(own, key, value, status);
        else
            rust.delete(own, key, status);
        if (status->code)
            return FAILED;
    }
    return DONE;
}

/* ------------------------------------------------------------------ futures */

/* What a waiting thread and the callbacks of its polls share. The library calls each callback once, at the latest when
the future is freed, and that can be after the thread has given up: the last one to be done with it frees it. */
typedef struct {
    PyThread_type_lock woken;
    atomic_int users;
    atomic_schar code;
} Turn;

static void leave(Turn *turn)
{
    if (atomic_fetch_sub(&turn->users, 1) == 1) {
        PyThread_free_lock(turn->woken);
        free(turn);
    }
}

static void wake(uint64_t data, int8_t code)
{
    Turn *turn = (Turn *)(uintptr_t)data;
    atomic_store(&turn->code, code);
    PyThread_release_lock(turn->woken);
    leave(turn);
}

int drive(void (*poll)(uint64_t, Woken, uint64_t), uint64_t future, long long limit_us)
{
    Turn *turn = malloc(sizeof(Turn));
    PyThread_type_lock woken = turn == NULL ? NULL : PyThread_allocate_lock();
    if (woken == NULL) {
        free(turn);
        return NO_MEMORY;
    }
    PyThread_acquire_lock(woken, WAIT_LOCK);
    turn->woken = woken;
    atomic_init(&turn->users, 1);
    atomic_init(&turn->code, 0);
    int outcome;
    do {
        atomic_fetch_add(&turn->users, 1);
        poll(future, wake, (uint64_t)(uintptr_t)turn);
        outcome = PyThread_acquire_lock_timed(woken, limit_us, 0) == PY_LOCK_ACQUIRED ? DONE : LATE;
    } while (outcome == DONE && atomic_load(&turn->code) != 0);
    leave(turn);
    return outcome;
}

/* ------------------------------------------------------------------ the flight */

static RustBuffer options_of(const char *encoded, Py_ssize_t size, CallStatus *status)
{
    RustBuffer buffer = rust.alloc(size, status);
    if (!status->code) {
        memcpy(buffer.data, encoded, size);
        buffer.len = size;
    }
    return buffer;
}

static int write_batch(uint64_t own_db, uint64_t own_batch, RustBuffer options, long long limit_us, CallStatus *status)
{
    uint64_t db = rust.clone_db(own_db, status);
    uint64_t batch = status->code ? 0 : rust.clone_batch(own_batch, status);
    if (status->code)
        return FAILED;
    uint64_t future = rust.write(db, batch, options);
    int outcome = drive(rust.poll_write, future, limit_us);
    if (outcome == DONE) {
        uint64_t written = rust.complete_write(future, status);
        CallStatus ignored = {0};
        if (status->code)
            outcome = FAILED;
        else
            rust.free_written(written, &ignored);
    }
    rust.free_write(future);
    return outcome;
}

static int flush_log(uint64_t own_db, RustBuffer options, long long limit_us, CallStatus *status)
{
    uint64_t db = rust.clone_db(own_db, status);
    if (status->code)
        return FAILED;
    uint64_t future = rust.flush(db, options);
    int outcome = drive(rust.poll_flush, future, limit_us);
    if (outcome == DONE) {
        rust.complete_flush(future, status);
        outcome = status->code ? FAILED : DONE;
    }
    rust.free_flush(future);
    return outcome;
}

/* ------------------------------------------------------------------ the module's functions */

PyObject *ended(int outcome)
{
    if (outcome == LATE)
        PyErr_SetNone(PyExc_TimeoutError);
    else if (outcome == NO_MEMORY)
        PyErr_NoMemory();
    else
        return Py_NewRef(Py_None);
    return NULL;
}

static PyObject *rows_bind(PyObject *Py_UNUSED(module), PyObject *addresses)
{
    char *found;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(addresses, &found, &size) < 0)
        return NULL;
    if (size != sizeof rust) {
        PyErr_SetString(PyExc_ValueError, "these are not the addresses of all functions");
        return NULL;
    }
    memcpy(&rust, found, sizeof rust);
    return Py_NewRef(Py_None);
}

static PyObject *rows_put(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long batch, status;
    PyObject *dict;
    Py_ssize_t count = 0;
    if (!PyArg_ParseTuple(arguments, "KOK:put", &batch, &dict, &status))
        return NULL;
    Row *rows = rows_of(dict, &count);
    if (rows == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    put_all(batch, rows, count, (CallStatus *)(uintptr_t)status);
    Py_END_ALLOW_THREADS
    free(rows);
    return Py_NewRef(Py_None);
}

static PyObject *rows_write(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long db, batch, status_at;
    PyObject *dict, *options_as_bytes;
    const char *encoded;
    Py_ssize_t count = 0, encoded_bytes;
    long long limit_us;
    if (!PyArg_ParseTuple(arguments, "KKOOLK:write", &db, &batch, &dict, &options_as_bytes, &limit_us, &status_at) ||
        bytes_of(options_as_bytes, &encoded, &encoded_bytes) < 0)
        return NULL;
    CallStatus *status = (CallStatus *)(uintptr_t)status_at;
    Row *rows = rows_of(dict, &count);
    if (rows == NULL)
        return NULL;
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    outcome = put_all(batch, rows, count, status);
    if (outcome == DONE) {
        RustBuffer options = options_of(encoded, encoded_bytes, status);
        outcome = status->code ? FAILED : write_batch(db, batch, options, limit_us, status);
    }
    Py_END_ALLOW_THREADS
    free(rows);
    return ended(outcome);
}

static PyObject *rows_flush(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long db, status_at;
    PyObject *options_as_bytes;
    const char *encoded;
    Py_ssize_t encoded_bytes;
    long long limit_us;
    if (!PyArg_ParseTuple(arguments, "KOLK:flush", &db, &options_as_bytes, &limit_us, &status_at) ||
        bytes_of(options_as_bytes, &encoded, &encoded_bytes) < 0)
        return NULL;
    CallStatus *status = (CallStatus *)(uintptr_t)status_at;
    int outcome;
    Py_BEGIN_ALLOW_THREADS
    RustBuffer options = options_of(encoded, encoded_bytes, status);
    outcome = status->code ? FAILED : flush_log(db, options, limit_us, status);
    Py_END_ALLOW_THREADS
    return ended(outcome);
}

static PyMethodDef methods[] = {
    {"bind", rows_bind, METH_O, "Take the addresses of the library's functions."},
    {"put", rows_put, METH_VARARGS, "Put the rows of a dict into a write batch; an error is left in the status."},
    {"write", rows_write, METH_VARARGS,
     "Put the rows of a dict into a batch and write it; an error is left in the status, TimeoutError is raised when "
     "nothing happens for the limit in microseconds."},
    {"flush", rows_flush, METH_VARARGS, "Flush the write-ahead log; errors as those of write."},
    {"parse", rows_parse, METH_O, "The rows in a serialized page."},
    {"next_rows", rows_next, METH_VARARGS, "The next rows of a scan; errors as those of write."},
    {"next_sum", rows_next_sum, METH_VARARGS, "The sum of the next rows of a scan; errors as those of write."},
    {"sum_rows", rows_sum, METH_VARARGS, "The sum of the rows of a dict."},
    {NULL, NULL, 0, NULL},
};

static int filled(PyObject *module)
{
    return PyModule_AddIntConstant(module, "BUFFER_BYTES", sizeof(RustBuffer)) < 0 ||
                   PyModule_AddIntConstant(module, "STATUS_BYTES", sizeof(CallStatus)) < 0
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, filled}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_rows",
    .m_doc = "Rows and commits handed to SlateDB's shared library.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&definition); }
