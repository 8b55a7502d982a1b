/* Pages of a scan, read and made into lists of rows, for which alone the interpreter lock is held, or added up. */

#include "_rows.h"

/* The size of a byte string, which stands before it; -1 when it would go beyond the end. */
static int64_t size_at(const uint8_t *at, const uint8_t *end)
{
    if (end - at < 4)
        return -1;
    int64_t size = (int64_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
    return size <= end - at - 4 ? size : -1;
}

/* The bytes after a row's value: sequence number and creation time, 8 bytes each, then the expiry time as an optional
   one. -1 when they would go beyond the end. */
static int64_t rest_at(const uint8_t *at, const uint8_t *end)
{
    int64_t rest = end - at < 17 ? INT64_MAX : at[16] ? 25 : 17;
    return rest <= end - at ? rest : -1;
}

static PyObject *wrong_layout(void)
{
    PyErr_SetString(PyExc_ValueError, "rows are not laid out as expected");
    return NULL;
}

static PyObject *field(const uint8_t **at, const uint8_t *end)
{
    const uint8_t *head = *at;
    int64_t size = size_at(head, end);
    if (size < 0)
        return wrong_layout();
    *at = head + 4 + size;
    return PyBytes_FromStringAndSize((const char *)head + 4, (Py_ssize_t)size);
}

/* The keys and values in a serialized sequence of the binding's `KeyValue`, like `parse_rows` in fast_rows.py. */
static PyObject *parsed(const uint8_t *at, const uint8_t *end)
{
    PyObject *list = PyList_New(0);
    at += end - at < 4 ? end - at : 4; /* the number of rows */
    while (list != NULL && at < end) {
        PyObject *key = field(&at, end), *value = key == NULL ? NULL : field(&at, end), *row = NULL;
        if (value != NULL) {
            int64_t rest = rest_at(at, end);
            if (rest < 0)
                wrong_layout();
            else {
                at += rest;
                row = PyTuple_Pack(2, key, value);
            }
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

/* 0 when the rows are not laid out as expected. */
static int added_up(const uint8_t *at, const uint8_t *end, const uint8_t *secret, Sum *sum)
{
    at += end - at < 4 ? end - at : 4; /* the number of rows */
    while (at < end) {
        int64_t key_bytes = size_at(at, end);
        int64_t value_bytes = key_bytes < 0 ? -1 : size_at(at + 4 + key_bytes, end);
        if (value_bytes < 0)
            return 0;
        size_t row_bytes = (size_t)(8 + key_bytes + value_bytes);
        int64_t rest = rest_at(at + row_bytes, end);
        if (rest < 0)
            return 0;
        add_row(sum, at, row_bytes, secret);
        at += row_bytes + rest;
    }
    return 1;
}

PyObject *rows_next_sum(PyObject *Py_UNUSED(module), PyObject *arguments)
{
    unsigned long long scan, status;
    unsigned int limit;
    long long limit_us;
    PyObject *secret_as_bytes;
    const uint8_t *secret;
    if (!PyArg_ParseTuple(arguments, "KILOK:next_sum", &scan, &limit, &limit_us, &secret_as_bytes, &status) ||
        !secret_of(secret_as_bytes, &secret))
        return NULL;
    int outcome, is_right = 1;
    Sum sum = {0};
    Py_BEGIN_ALLOW_THREADS
    RustBuffer page = {0};
    outcome = read_page(scan, limit, limit_us, (CallStatus *)(uintptr_t)status, &page);
    if (outcome == DONE) {
        CallStatus ignored = {0};
        is_right = added_up(page.data, page.data + page.len, secret, &sum);
        rust.free_buffer(page, &ignored);
    }
    Py_END_ALLOW_THREADS
    if (outcome == LATE || outcome == NO_MEMORY)
        return ended(outcome);
    return is_right ? sum_as_tuple(&sum) : wrong_layout();
}
