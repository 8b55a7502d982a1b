/* Pages of a scan, read and made into lists of rows; the interpreter lock is held only for the latter. */

#include "_rows.h"

static PyObject *field(const uint8_t **at, const uint8_t *end)
{
    const uint8_t *head = *at;
    if (end - head >= 4) {
        int64_t size = (int64_t)head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
        if (size <= end - head - 4) {
            *at = head + 4 + size;
            return PyBytes_FromStringAndSize((const char *)head + 4, (Py_ssize_t)size);
        }
    }
    PyErr_SetString(PyExc_ValueError, "rows are not laid out as expected");
    return NULL;
}

/* The keys and values in a serialized sequence of the binding's `KeyValue`, like `parse_rows` in fast_rows.py. */
static PyObject *parsed(const uint8_t *at, const uint8_t *end)
{
    PyObject *list = PyList_New(0);
    at += end - at < 4 ? end - at : 4; /* the number of rows */
    while (list != NULL && at < end) {
        PyObject *key = field(&at, end), *value = key == NULL ? NULL : field(&at, end), *row = NULL;
        if (value != NULL) {
            /* Sequence number and creation time, 8 bytes each, then the expiry time as an optional one. */
            int64_t more = end - at < 17 ? INT64_MAX : at[16] ? 25 : 17;
            if (more <= end - at) {
                at += more;
                row = PyTuple_Pack(2, key, value);
            } else
                PyErr_SetString(PyExc_ValueError, "rows are not laid out as expected");
        }
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (row == NULL || PyList_Append(list, row) < 0)
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static int read_page(uint64_t scan, uint32_t limit, long long limit_us, CallStatus *status, RustBuffer *page)
{
    uint64_t own = rust.clone_scan(scan, status);
    if (status->code)
        return FAILED;
    uint64_t future = rust.next_batch(own, limit);
    int outcome = drive(rust.poll_page, future, limit_us);
    if (outcome == DONE) {
        *page = rust.complete_page(future, status);
        outcome = status->code ? FAILED : DONE;
    }
    rust.free_page(future);
    return outcome;
}

PyObject *rows_parse(PyObject *Py_UNUSED(module), PyObject *encoded)
{
    char *found;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(encoded, &found, &size) < 0)
        return NULL;
    return parsed((const uint8_t *)found, (const uint8_t *)found + size);
}

PyObject *rows_next(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long scan, status;
    unsigned int limit;
    long long limit_us;
    if (!PyArg_ParseTuple(arguments, "KILK:next_rows", &scan, &limit, &limit_us, &status))
        return NULL;
    int outcome;
    RustBuffer page = {0};
    Py_BEGIN_ALLOW_THREADS
    outcome = read_page(scan, limit, limit_us, (CallStatus *)(uintptr_t)status, &page);
    Py_END_ALLOW_THREADS
    if (outcome == LATE || outcome == NO_MEMORY)
        return ended(outcome);
    PyObject *list = parsed(page.data, page.data + page.len);
    if (outcome == DONE) {
        CallStatus ignored = {0};
        rust.free_buffer(page, &ignored);
    }
    return list;
}
